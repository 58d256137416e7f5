"""After Ctrl-C at any instant, a save, restore or import has happened wholly or not at all."""

import itertools
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint import reader
from fastvar.checkpoint.background import Background
from tests.support.cases import contents
from tests.support.interrupts import check_at_instants, check_at_random_instants, timers


class Sampler:
    """An object with its own state."""

    def __init__(self) -> None:
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class Program:
    """A training program: small and large variables, an optimizer, generators, other state."""

    def __init__(self, seed: int, build: bool = True, size: int = 100) -> None:
        self.rng, self.random = np.random.default_rng(seed), random.Random(seed)
        self.variables = [
            fv.Variable(self.rng.random(s), name=n) for s, n in [((size, size), "large"), (3, "small")]
        ]
        self.optimizer, self.sampler, self.progress = fv.optimizers.Adam(0.125), Sampler(), {"epoch": seed}
        self.sampler.position = seed
        if build:
            self.optimizer.apply([np.cos(v.value) for v in self.variables], self.variables)
        self.checkpoint = fv.Checkpoint(
            variables=self.variables,
            optimizer=self.optimizer,
            sampler=self.sampler,
            progress=self.progress,
            rng=self.rng,
            random=self.random,
        )

    def state(self) -> Any:
        others = self.progress.copy(), self.sampler.position, self.random.getstate(), self.rng.bit_generator.state
        built = len(self.optimizer._state.variables), [*self.optimizer._state.slots]
        return contents(self.optimizer, self.variables), built, others, self.optimizer.get_config()


@pytest.mark.parametrize("build", [True, False], ids=["built", "not built"])
def test_a_restore_is_whole_or_nothing(build: bool, tmp_path: Path) -> None:
    path = Program(1).checkpoint.save(tmp_path / "a.h5")

    def scene() -> Any:
        program = Program(2, build)
        return lambda: program.checkpoint.restore(path), program.state

    check_at_instants(scene)


def test_a_restore_by_a_manager_is_whole_or_nothing(tmp_path: Path) -> None:
    with fv.CheckpointManager(Program(1).checkpoint, tmp_path) as manager:
        manager.save()

    def scene() -> Any:
        program = Program(2)
        return fv.CheckpointManager(program.checkpoint, tmp_path).restore_or_initialize, program.state

    check_at_instants(scene)


def test_a_restore_by_a_saver_is_whole_or_nothing(tmp_path: Path) -> None:
    path = fv.Saver(Program(1).variables).save(tmp_path / "a")

    def scene() -> Any:
        program = Program(2)
        return lambda: fv.Saver(program.variables).restore(path), program.state

    check_at_instants(scene)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files that Ctrl-C left open
def test_an_import_is_whole_or_nothing(tmp_path: Path) -> None:
    arrays = {v.name: v.value.astype(np.float32) for v in Program(1).variables}
    np.savez(tmp_path / "a.npz", **arrays)

    def scene() -> Any:
        program = Program(2)
        return lambda: program.checkpoint.import_weights(tmp_path / "a.npz"), program.state

    check_at_instants(scene)


def files(folder: Path) -> Any:
    """Return the whole checkpoints in a folder, and all other files except locks."""
    found: list[Any] = []
    for path in sorted(folder.iterdir()):
        if path.suffix == ".h5":
            with reader.File(path) as file:
                file.verify()
                found.append((path.name, file.step))
        elif "lock" not in path.name:
            found.append(path.name)
    return found


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_save_is_whole_or_nothing(overwrite: bool, tmp_path: Path) -> None:
    numbers, program = itertools.count(), Program(1)

    def scene() -> Any:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        if overwrite:
            program.checkpoint.save(folder / "a.h5", step=0)
        return lambda: program.checkpoint.save(folder / "a.h5", step=1, overwrite=overwrite), lambda: files(folder)

    check_at_instants(scene)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_save_by_a_manager_is_whole_or_nothing(blocking: bool, tmp_path: Path) -> None:
    numbers, program = itertools.count(), Program(1)

    def scene() -> Any:
        folder = tmp_path / str(next(numbers))
        manager = fv.CheckpointManager(program.checkpoint, folder)
        manager.save(step=0)

        def save() -> None:
            manager.save(step=1, blocking=blocking)
            manager.wait()

        def state() -> Any:
            manager.wait()
            return files(folder)

        return save, state

    check_at_instants(scene)


@timers
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # lost in finalizers
@pytest.mark.parametrize("how", ["restore", "import"])
def test_what_a_timer_interrupts_is_whole_or_nothing(how: str, tmp_path: Path) -> None:
    """Interrupt also while threads read, and in system calls."""
    before = fv.get_num_threads()
    fv.set_num_threads(3)
    try:
        program, states, calls = Program(0, size=1000), [], itertools.count()
        for seed in (1, 2):
            other = Program(seed, size=1000)
            other.checkpoint.save(tmp_path / f"{seed}.h5")
            np.savez(tmp_path / f"{seed}.npz", **{v.name: v.value for v in other.variables})
        take = program.checkpoint.restore if how == "restore" else program.checkpoint.import_weights
        paths = sorted(tmp_path.glob("*.h5" if how == "restore" else "*.npz"))
        for path in paths:
            take(path)
            states.append(program.state())

        def check() -> None:
            assert program.state() in states

        check_at_random_instants(lambda: take(paths[next(calls) % 2]), check, 2.0, 0.05)
    finally:
        fv.set_num_threads(before)


@timers
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # lost in finalizers
def test_saves_that_a_timer_interrupts_leave_nothing_behind(tmp_path: Path) -> None:
    checkpoint, steps = Program(1, size=300).checkpoint, itertools.count(1)

    def check() -> None:
        assert all(name == "a.h5" for name, _ in files(tmp_path))

    check_at_random_instants(
        lambda: checkpoint.save(tmp_path / "a.h5", step=next(steps), overwrite=True), check, 2.0, 0.02
    )


def test_an_object_that_refuses_its_state_gives_those_before_it_the_old_one_back(tmp_path: Path) -> None:
    class Picky(Sampler):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            if state["position"] == 1:
                raise RuntimeError("not this one")
            super().load_state_dict(state)

    w, first, second, progress = fv.Variable(1.0), Sampler(), Picky(), {"epoch": 1}
    first.position = second.position = 1
    checkpoint = fv.Checkpoint(w=w, progress=progress, first=first, second=second)
    path = checkpoint.save(tmp_path / "a.h5")
    w[...] = first.position = second.position = progress["epoch"] = 2
    with pytest.raises(RuntimeError, match="not this one"):
        checkpoint.restore(path)
    assert (float(w), first.position, second.position, progress) == (2.0, 2, 2, {"epoch": 2})


@pytest.mark.parametrize("build", [True, False], ids=["built", "not built"])
def test_what_changes_in_a_file_meanwhile_leaves_all_but_large_tensors(
    build: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    saved = Program(1)
    saved.optimizer.learning_rate, saved.optimizer.amsgrad = 0.5, True
    path = saved.checkpoint.save(tmp_path / "a.h5")
    program = Program(2, build)
    program.optimizer.learning_rate = fv.schedules.ReduceOnPlateau(0.25)
    state, large = program.state(), program.variables[0].numpy()

    def lost(file: Any, targets: Any) -> None:
        if any(array is program.variables[0]._array for _, array in targets):
            raise fv.CheckpointError("lost")

    monkeypatch.setattr(reader.File, "read_into", lost)
    with pytest.warns(RuntimeWarning, match="learning_rate"), pytest.raises(fv.CheckpointError, match="lost; the"):
        program.checkpoint.restore(path)
    np.testing.assert_array_equal(program.variables[0].value, large)
    assert program.state() == state


def test_waiting_for_a_save_can_be_interrupted_and_repeated_and_loses_no_error() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def task() -> None:
        begun.set()
        go_on.wait(10)
        raise OSError("lost?")

    background = Background()
    background.start(task)
    begun.wait(10)
    threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        background.wait()
    assert background.busy
    go_on.set()
    with pytest.raises(OSError, match="lost"):
        background.wait()
    background.wait()
    assert not background.busy
