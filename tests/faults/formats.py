"""Ways to save arrays, all put to the same faults: ours, and the usual alternatives."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import fastvar as fv
import fastvar.distributed as fd
from fastvar import threads
from fastvar.checkpoint import parts, writer
from fastvar.checkpoint.file_format import Saved, failing
from fastvar.checkpoint.folder import Folder
from fastvar.checkpoint.manager import retain
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.retention import Retention
from tests.support.part_files import write_parts

Arrays = Mapping[str, np.ndarray[Any, Any]]


class Format(NamedTuple):
    """A way to save arrays in a folder, over an older save, and to load the last save."""

    name: str
    save: Callable[[str, Arrays], object]
    load: Callable[[str], Arrays]


def payload(generation: int, large: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays that differ in every value from those of another generation."""
    rng = np.random.default_rng(generation)
    kernel = rng.standard_normal((150, 150) if large else (36, 36), np.float32)
    return {"kernel": kernel, "bias": rng.standard_normal(5), "steps": np.array(generation)}


def _checkpoint(arrays: Arrays) -> fv.Checkpoint:
    return fv.Checkpoint({name: fv.Variable(array, name=name) for name, array in arrays.items()})


def _manager(folder: str, arrays: Arrays) -> fv.CheckpointManager:
    return fv.CheckpointManager(_checkpoint(arrays), folder, max_to_keep=2)


def _save_managed(folder: str, arrays: Arrays) -> None:
    with _manager(folder, arrays) as manager:
        manager.save(int(arrays["steps"]))


def _save_in_background(folder: str, arrays: Arrays) -> None:
    """Change the variables at once, as training does, while the thread may still be writing."""
    checkpoint = _checkpoint(arrays)
    with fv.CheckpointManager(checkpoint, folder, max_to_keep=2) as manager:
        manager.save(int(arrays["steps"]), blocking=False)
        for variable in checkpoint.collect()[0].values():
            variable[...] = 7


def _save_without_links(folder: str, arrays: Arrays) -> None:
    """Save as on a file system without hard links."""

    def refused(*names: str) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with mock.patch.object(os, "link", refused):
        _save_managed(folder, arrays)


def _save_by_threads(folder: str, arrays: Arrays) -> None:
    """Save as for large files, by several threads, with smaller pieces, so that each thread has some."""
    three = mock.patch.object(threads, "get_num_threads", return_value=3)
    with three, mock.patch.object(writer, "CHUNK", 1 << 14):
        _save_managed(folder, arrays)


def _save_set(folder: str, arrays: Arrays) -> None:
    """Save as the ranks of a run do, one after the other: a set of two part files."""
    with failing(folder):
        of_run = Folder(folder, "ckpt")
        of_run.lock.acquire()
        of_run.clean()
        counter = of_run.next_counter()
    path = of_run.path(counter)
    tensors = {f"variables/{name}": array for name, array in arrays.items() if name != "steps"}
    cuts = {name: [array.size * 9 // 10] for name, array in tensors.items()}
    records = write_parts(path, tensors, cuts)
    steps, step = {"variables/steps": arrays["steps"]}, int(arrays["steps"])
    parts.publish(path, records, steps, {}, step=step, lock=of_run.lock, saved=Saved("00" * 16, counter))
    retain(path, of_run, Retention(2))
    of_run.lock.release()


def _save_by_ranks(folder: str, arrays: Arrays) -> None:
    """Save on two ranks, as threads. All must have an error, or none."""
    errors: list[Exception] = []

    def program(world: fd.World) -> None:
        variables = [fv.Variable(array, name=name) for name, array in arrays.items() if name != "steps"]
        steps = fv.Variable(arrays["steps"], name="steps", trainable=False)
        optimizer = fd.Distributed(fv.optimizers.SGD(), world, 2)
        optimizer.build(variables)
        checkpoint = fd.Checkpoint([*variables, steps], optimizer=optimizer)
        manager = fd.CheckpointManager(checkpoint, folder, max_to_keep=2)
        try:
            manager.save(int(arrays["steps"]))
        except fv.CheckpointError as error:
            errors.append(error)
        manager.close()

    fd.simulate(2, program)
    assert len(errors) in {0, 2}, errors
    if errors:
        raise next(error for error in errors if not str(error).startswith("rank "))


def _load_managed(folder: str) -> Arrays:
    return _load_with(folder, _variables(folder))


def _load_of_ranks(folder: str) -> Arrays:
    """Load in one process. Only the whole size is saved so."""
    variables = {name: fv.Variable(np.zeros_like(array), name=name) for name, array in payload(0).items()}
    return _load_with(folder, variables, optimizer=fv.optimizers.SGD())


def _load_with(folder: str, variables: dict[str, fv.Variable], **objects: Any) -> Arrays:
    manager = fv.CheckpointManager(fv.Checkpoint(variables, **objects), folder)
    if manager.restore_or_initialize() is None:
        raise FileNotFoundError(f"{folder}: there is no checkpoint")
    return {name: variable.numpy() for name, variable in variables.items()}


def _variables(folder: str) -> dict[str, fv.Variable]:
    return {name: fv.Variable(np.zeros_like(array), name=name) for name, array in _like(folder).items()}


def _like(folder: str) -> Arrays:
    """Return arrays with the saved shapes. Programs know theirs; here they follow from the sizes of the files."""
    while True:
        names = os.listdir(folder)
        with contextlib.suppress(FileNotFoundError):  # others may save meanwhile
            sizes = [os.path.getsize(os.path.join(folder, name)) for name in names]
            return payload(0, large=max(sizes, default=0) > 1 << 16)


def _save_one_file(folder: str, arrays: Arrays) -> None:
    _checkpoint(arrays).save(os.path.join(folder, "model.h5"), overwrite=True)


def _load_one_file(folder: str) -> Arrays:
    variables = _variables(folder)
    fv.Checkpoint(variables).restore(os.path.join(folder, "model.h5"))
    return {name: variable.numpy() for name, variable in variables.items()}


def _load_in_one_go(folder: str) -> Arrays:
    with File(os.path.join(folder, "model.h5")) as file:
        return {name.removeprefix("variables/"): file.read(name) for name in file.entries}


def _save_torch(folder: str, arrays: Arrays) -> None:
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, f"{folder}/model.pt")


def _load_torch(folder: str) -> Arrays:
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(f"{folder}/model.pt").items()}


def _save_safetensors(folder: str, arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), f"{folder}/model.safetensors")


def _load_safetensors(folder: str) -> Arrays:
    from safetensors.numpy import load_file

    return load_file(f"{folder}/model.safetensors")


def _save_npz(folder: str, arrays: Arrays) -> None:
    np.savez(f"{folder}/model.npz", **arrays)


def _load_npz(folder: str) -> Arrays:
    with np.load(f"{folder}/model.npz") as file:
        return dict(file)


def _save_h5py(folder: str, arrays: Arrays) -> None:
    import h5py

    with h5py.File(f"{folder}/model.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array


def _load_h5py(folder: str) -> Arrays:
    import h5py

    with h5py.File(f"{folder}/model.h5", "r") as file:
        return {name: np.asarray(file[name][()]) for name in file}


def keras_model(arrays: Arrays) -> Any:
    import keras

    class Weights(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            for name, array in arrays.items():
                self.add_weight(shape=array.shape, dtype=str(array.dtype), name=name).assign(array)

        def call(self, x: Any) -> Any:
            return x

    layer = Weights()
    model = keras.Sequential([keras.Input((1,)), layer])
    return model, layer


def _save_keras(folder: str, arrays: Arrays) -> None:
    keras_model(arrays)[0].save_weights(f"{folder}/model.weights.h5")


def _load_keras(folder: str) -> Arrays:
    like = _like(folder)
    model, layer = keras_model({name: np.zeros_like(array) for name, array in like.items()})
    model.load_weights(f"{folder}/model.weights.h5")
    return {name: np.asarray(weight) for name, weight in zip(like, layer.weights, strict=True)}


def replacing(format: Format) -> Format:
    """The same, but more careful: save to a temporary file, which then replaces the old one."""

    def save(folder: str, arrays: Arrays) -> None:
        beside = os.path.join(folder, f"beside-{os.getpid()}")  # one for each process
        os.makedirs(beside, exist_ok=True)
        format.save(beside, arrays)
        for name in os.listdir(beside):
            os.replace(os.path.join(beside, name), os.path.join(folder, name))

    return Format(f"{format.name} + `os.replace`", save, format.load)


OURS = [
    Format("fastvar `CheckpointManager`", _save_managed, _load_managed),
    Format("fastvar `Checkpoint`, one file", _save_one_file, _load_one_file),
]
QUICK = Format("fastvar, the reader alone", _save_one_file, _load_in_one_go)  # for hundreds of thousands of loads
RANKS = Format("fastvar, by ranks", _save_by_ranks, _load_of_ranks)
SETS = Format("fastvar, a set of part files", _save_set, _load_managed)
MORE = [
    Format("fastvar, in the background", _save_in_background, _load_managed),
    Format("fastvar, without links", _save_without_links, _load_managed),
    Format("fastvar, by threads", _save_by_threads, _load_managed),
]
RIVALS = [
    Format("`torch.save`", _save_torch, _load_torch),
    Format("safetensors", _save_safetensors, _load_safetensors),
    Format("`np.savez`", _save_npz, _load_npz),
    Format("h5py", _save_h5py, _load_h5py),
    Format("Keras `.weights.h5`", _save_keras, _load_keras),
]
CAREFUL = [replacing(rival) for rival in RIVALS]
FORMATS = {format.name: format for format in [*OURS, *MORE, QUICK, SETS, RANKS, *RIVALS, *CAREFUL]}
