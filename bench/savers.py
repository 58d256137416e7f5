"""Ways to save and restore one training state: fastvar, plain system calls, and other libraries."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastvar as fv
from tests.faults.formats import RIVALS, Format, keras_model

Arrays = dict[str, np.ndarray[Any, Any]]
_HEADER = 8192  # raw writes begin here: at multiples of 2 MB, some systems are much slower
FASTVAR, RAW, KERAS = "fastvar", "raw bytes", "Keras `.weights.h5`"


class Saver(NamedTuple):
    """Two functions: save into an empty folder, and load from it."""

    save: Callable[[str], object]
    load: Callable[[str], object]


class Training:
    """The state to save: weights, and Adam's two moments of each."""

    def __init__(self, sizes: list[int]) -> None:
        rng = np.random.default_rng(0)
        self.weights = [fv.Variable(rng.standard_normal(n, np.float32), name=f"w{i}") for i, n in enumerate(sizes)]
        self.gradients = [np.full(n, 0.1, np.float32) for n in sizes]
        self.optimizer = fv.optimizers.Adam(1e-6)
        self.step()
        self.checkpoint = fv.Checkpoint(variables=self.weights, optimizer=self.optimizer)
        self.arrays: Arrays = self.checkpoint.collect()[0]
        self.nbytes = sum(a.nbytes for a in self.arrays.values())

    def step(self) -> None:
        self.optimizer.apply(self.gradients, self.weights)


def savers(training: Training) -> dict[str, Saver]:
    """Return all savers by name. The others save the arrays of the same state."""

    def fastvar(folder: str) -> None:
        training.checkpoint.save(f"{folder}/model.h5")

    everyone = {
        RAW: raw_saver(training.arrays),
        FASTVAR: Saver(fastvar, lambda folder: training.checkpoint.restore(f"{folder}/model.h5")),
    }
    flat = {name.replace("/", "_"): array for name, array in training.arrays.items()}
    for form in RIVALS:
        everyone[form.name] = _other(form, flat)
    everyone[KERAS] = _keras(flat)
    return everyone


def sync(folder: str) -> None:
    """Write the files of a folder to the disk."""
    for name in os.listdir(folder):
        descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _other(form: Format, arrays: Arrays) -> Saver:
    """Save with another library, and load back into the same arrays, as a restore does."""

    def load(folder: str) -> None:
        for name, array in form.load(folder).items():
            np.copyto(arrays[name], array)

    return Saver(lambda folder: form.save(folder, arrays), load)


def raw_saver(arrays: Arrays) -> Saver:
    """Write and read the arrays one after the other, with plain system calls."""
    views = [array.reshape(-1).view(np.uint8) for array in arrays.values()]

    def save(folder: str) -> None:
        descriptor = os.open(f"{folder}/raw", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(descriptor, 0, _HEADER + sum(view.size for view in views))
        os.lseek(descriptor, _HEADER, os.SEEK_SET)
        for view in views:
            rest = view.data
            while rest.nbytes:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        os.close(descriptor)

    def load(folder: str) -> None:
        descriptor = os.open(f"{folder}/raw", os.O_RDONLY)
        os.lseek(descriptor, _HEADER, os.SEEK_SET)
        for view in views:
            rest = view.data
            while rest.nbytes:
                rest = rest[os.readv(descriptor, [rest]) :]
        os.close(descriptor)

    return Saver(save, load)


def _keras(arrays: Arrays) -> Saver:
    model, _ = keras_model(arrays)
    return Saver(
        lambda folder: model.save_weights(f"{folder}/model.weights.h5"),
        lambda folder: model.load_weights(f"{folder}/model.weights.h5"),
    )
