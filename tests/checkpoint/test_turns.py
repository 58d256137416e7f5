"""Saves and restores while other threads step or write: each file is whole, and from a single step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint.reader import File

LARGE = 1 << 18  # elements


def descent(size: int = LARGE) -> tuple[fv.Variable, fv.optimizers.SGD]:
    """Return a variable and its optimizer; with gradients of 1, w is -n and the momentum -1 after n steps."""
    w = fv.Variable(np.zeros(size), name="w")
    optimizer = fv.optimizers.SGD(1.0, momentum=0.5)
    optimizer.build([w])
    return w, optimizer


def expected(steps: int) -> tuple[float, float]:
    """Return weight and momentum after a number of steps, as Keras defines them. All these numbers are exact."""
    w = m = 0.0
    for _ in range(steps):
        m = 0.5 * m - 1
        w += m
    return w, m


@contextlib.contextmanager
def beside(act: Callable[[], object]) -> Iterator[None]:
    """Let another thread repeat an action, which must not raise an error."""
    stop, begun = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                act()
                begun.set()
        except BaseException as error:
            errors.append(error)
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        stop.set()
        thread.join()
    assert not errors


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_save_is_of_one_step(blocking: bool, size: int, tmp_path: Path) -> None:
    w, optimizer = descent(size)
    ones = np.ones(size)

    def step() -> None:
        if optimizer.iterations < 40:  # up to this step the numbers are exact
            optimizer.apply([ones])

    with (
        beside(step),
        fv.CheckpointManager(fv.Checkpoint(variables=[w], optimizer=optimizer), tmp_path, None) as manager,
    ):
        for _ in range(8):
            manager.save(blocking=blocking)
    for path in manager.checkpoints:
        with File(path) as file:
            file.verify()
            weight, momentum = expected(file.state["optimizer"]["steps"])
            assert (file.read("variables/w") == weight).all()
            assert (file.read("optimizer/w/momentum") == momentum).all()


def test_a_restore_is_of_one_step(tmp_path: Path) -> None:
    w, optimizer = descent()
    checkpoint = fv.Checkpoint(variables=[w], optimizer=optimizer)
    ones = np.ones(LARGE)
    optimizer.apply([ones])
    path = checkpoint.save(tmp_path / "a.h5")
    with beside(lambda: optimizer.apply([ones])):
        for _ in range(8):
            checkpoint.restore(path)
    optimizer.apply([ones])
    assert (w.value == w.value[0]).all()
    assert optimizer.iterations > 1


def test_what_is_written_is_what_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write to an array while it is saved, just before every write to the file."""
    sizes = [3, 70_000, LARGE, 3 * LARGE]
    variables = [fv.Variable(np.zeros(size), name=f"w{size}") for size in sizes]
    write = os.pwrite

    def changing(descriptor: int, data: Any, offset: int) -> int:
        for v in variables:
            v.value[...] += 1
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", changing)
    path = fv.Checkpoint(variables=variables).save(tmp_path / "a.h5")
    with File(path) as file:
        file.verify()


def within(optimizer: fv.Optimizer, act: Callable[[], object]) -> None:
    """Run an action inside a step."""

    def rate(step: int) -> float:
        act()
        return 1.0

    optimizer.learning_rate = rate
    optimizer.apply([np.ones(optimizer._state.variables[0].size)])


def test_saves_and_restores_within_a_step_are_refused(tmp_path: Path) -> None:
    w, optimizer = descent(3)
    checkpoint = fv.Checkpoint(variables=[w], optimizer=optimizer)
    path = checkpoint.save(tmp_path / "a.h5")
    for act in (lambda: checkpoint.save(tmp_path / "b.h5"), lambda: checkpoint.restore(path)):
        with pytest.raises(
            RuntimeError, match="SGD: save or restore within a step of this optimizer, in the same"
        ):
            within(optimizer, act)
    optimizer.learning_rate = 1.0
    optimizer.apply([np.ones(3)])
    checkpoint.save(tmp_path / "b.h5")
    assert (w.value == -1).all()


class Stepping:
    """State whose saving takes a step."""

    def __init__(self, optimizer: fv.Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        self.optimizer.apply([np.ones(3)])
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state_dict()


def test_a_step_within_a_save_is_refused(tmp_path: Path) -> None:
    w, optimizer = descent(3)
    checkpoint = fv.Checkpoint(variables=[w], optimizer=optimizer, state=Stepping(optimizer))
    with pytest.raises(RuntimeError, match="SGD: step within a save or restore of this optimizer, in the same"):
        checkpoint.save(tmp_path / "a.h5")
    optimizer.apply([np.ones(3)])
    assert not os.listdir(tmp_path)


@contextlib.contextmanager
def step_under_way(optimizer: fv.Optimizer) -> Iterator[None]:
    """Keep another thread inside a step until the block ends."""
    inside, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=within, args=(optimizer, lambda: inside.set() or leave.wait()))
    thread.start()
    inside.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()
        optimizer.learning_rate = 1.0


def test_an_interrupted_wait_leaves_every_turn_free(tmp_path: Path) -> None:
    w, optimizer = descent(3)
    free = fv.optimizers.SGD(1.0)
    free.build([fv.Variable(np.zeros(3), name="x")])
    checkpoint = fv.Checkpoint(variables=[w, *free._state.variables], free=free, optimizer=optimizer)
    with step_under_way(optimizer):
        threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path / "a.h5")
    assert not os.listdir(tmp_path)
    for one in (free, optimizer):
        one.apply([np.ones(3)])
    checkpoint.save(tmp_path / "a.h5")


def test_an_interrupted_step_that_waits_for_a_save_has_not_happened(tmp_path: Path) -> None:
    w, optimizer = descent(3)
    checkpoint = fv.Checkpoint(variables=[w], optimizer=optimizer)
    inside, leave = threading.Event(), threading.Event()

    def save() -> None:
        with checkpoint._hold():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=save)
    thread.start()
    inside.wait()
    threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        optimizer.apply([np.ones(3)])
    assert (w.value == 0).all()
    leave.set()
    thread.join()
    optimizer.apply([np.ones(3)])
    assert (w.value == -1).all()


def test_a_step_inside_of_another_optimizers_step_and_a_save_of_both_do_not_wait_for_each_other(
    tmp_path: Path,
) -> None:
    outer, inner = fv.optimizers.SGD(1.0), fv.optimizers.SGD(1.0)
    v, w = fv.Variable(np.zeros(3), name="v"), fv.Variable(np.zeros(3), name="w")
    outer.build([v])
    inner.build([w])
    outer.learning_rate = lambda step: inner.apply([np.ones(3)]) or 1.0
    checkpoint = fv.Checkpoint(variables=[v, w], inner=inner, outer=outer)
    with beside(lambda: outer.apply([np.ones(3)])):
        for _ in range(5):
            checkpoint.save(tmp_path / "a.h5", overwrite=True)
    assert inner.iterations >= outer.iterations > 1


def test_a_save_of_a_loss_scale_takes_the_turn_of_the_optimizer_inside(tmp_path: Path) -> None:
    inner = fv.optimizers.SGD(1.0)
    scaled = fv.optimizers.LossScaleOptimizer(inner)
    w = fv.Variable(np.zeros(3), name="w")
    scaled.build([w])
    checkpoint = fv.Checkpoint(variables=[w], scaled=scaled)
    with checkpoint._hold(), pytest.raises(RuntimeError, match="SGD: step within a save or restore"):
        inner.apply([np.ones(3)])
