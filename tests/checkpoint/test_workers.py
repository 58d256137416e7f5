"""Several threads save and restore the same files and values as one thread, and raise one error."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint import reader, writer
from fastvar.checkpoint.file_format import Saved
from fastvar.checkpoint.workers import work_in_parallel

SAVED = Saved("00" * 16, 1)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = fv.get_num_threads()
    fv.set_num_threads(4)
    yield
    fv.set_num_threads(before)


def tensors() -> dict[str, Any]:
    """Tensors of several pieces and of less than one, small ones between them, and empty ones."""
    rng = np.random.default_rng(0)
    sizes = [3_000_001, 5, 70_000, 0, 1_048_576, 65_536, 65_535, 1, 2_500_000, 300]
    return {f"variables/{i}": rng.integers(0, 256, n).astype(np.uint8) for i, n in enumerate(sizes)}


@pytest.mark.usefixtures("four_threads")
def test_every_item_is_taken_once() -> None:
    taken: list[tuple[str, int]] = []

    def work(items: Iterator[int]) -> None:
        for item in items:
            time.sleep(0.001)
            taken.append((threading.current_thread().name, item))

    work_in_parallel(range(100), work, 100)
    assert sorted(item for _, item in taken) == list(range(100))
    assert len({name for name, _ in taken}) == 4
    taken.clear()
    work_in_parallel(range(3), work, 1)  # too small for another thread
    assert taken == [("MainThread", item) for item in range(3)]


@pytest.mark.usefixtures("four_threads")
def test_threads_other_than_the_main_one_work_alone() -> None:
    names: set[str] = set()

    def work(items: Iterator[int]) -> None:
        names.update(threading.current_thread().name for _ in items)

    beside = threading.Thread(target=work_in_parallel, args=(range(100), work, 100), name="beside")
    beside.start()
    beside.join()
    assert names == {"beside"}


@pytest.mark.usefixtures("four_threads")
def test_where_no_thread_can_be_started_the_main_one_does_it_all(monkeypatch: Any) -> None:
    def refused(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    taken: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refused)
    work_in_parallel(range(10), taken.extend, 10)
    assert taken == list(range(10))


@pytest.mark.usefixtures("four_threads")
def test_where_fewer_threads_can_be_started_the_errors_of_these_are_raised(monkeypatch: Any) -> None:
    start, started, tried = threading.Thread.start, [], threading.Event()

    def once(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    def work(items: Iterator[int]) -> None:
        for _ in items:
            if threading.current_thread() is not threading.main_thread():
                tried.set()
                raise ZeroDivisionError
            assert tried.wait(10)

    monkeypatch.setattr(threading.Thread, "start", once)
    with pytest.raises(ZeroDivisionError):
        work_in_parallel(range(100), work, 100)


@pytest.mark.usefixtures("four_threads")
def test_no_thread_is_at_work_any_more_however_often_one_interrupts(tmp_path: Path, monkeypatch: Any) -> None:
    """Else it would write to the next file that gets the same descriptor."""
    write, main = os.pwrite, threading.main_thread()
    at_work, begun, interrupted = set[int](), threading.Event(), threading.Event()

    def interrupt() -> None:
        for _ in range(3):
            time.sleep(0.02)
            signal.pthread_kill(main.ident or 0, signal.SIGINT)
        interrupted.set()

    def slow(descriptor: int, data: Any, offset: int) -> int:
        if threading.current_thread() is main:
            assert begun.wait(10)
            threading.Thread(target=interrupt).start()
            raise KeyboardInterrupt
        at_work.add(threading.get_ident())
        begun.set()
        interrupted.wait(10)
        time.sleep(0.1)
        count = write(descriptor, data, offset)
        at_work.remove(threading.get_ident())
        return count

    monkeypatch.setattr(os, "pwrite", slow)
    with pytest.raises(KeyboardInterrupt):
        writer.write(tmp_path / "a.h5", tensors(), {}, step=1)
    assert begun.is_set()
    assert not at_work
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("where", ["MainThread", "fastvar-io"])
def test_an_error_in_any_thread_ends_the_work_of_all_and_is_raised(where: str) -> None:
    before, taken = threading.active_count(), list[int]()

    def work(items: Iterator[int]) -> None:
        for item in items:
            time.sleep(0.001)
            if threading.current_thread().name.startswith(where) and item > 10:
                raise ZeroDivisionError
            taken.append(item)

    with pytest.raises(ZeroDivisionError):
        work_in_parallel(range(10_000), work, 100)
    assert len(taken) < 1000
    assert threading.active_count() == before

    def spoilt() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work_in_parallel(spoilt(), work, 100)


def test_files_are_the_same_for_any_number_of_threads(tmp_path: Path, four_threads: None) -> None:
    made = tensors()
    contents = set()
    for count in (1, 2, 3, 4):
        fv.set_num_threads(count)
        path = tmp_path / f"{count}.h5"
        writer.write(path, made, {}, step=1, saved=SAVED)
        contents.add(path.read_bytes())
        targets = [(name, np.zeros_like(array)) for name, array in made.items()]
        with reader.File(path) as file:
            file.verify()
            file.read_into(targets)
            for name, target in targets:
                np.testing.assert_array_equal(target, made[name])
                np.testing.assert_array_equal(file.read(name), made[name])
    assert len(contents) == 1


@pytest.mark.parametrize("where", ["MainThread", "fastvar-io"])
def test_a_write_that_fails_in_any_thread_is_one_error(
    where: str, tmp_path: Path, monkeypatch: Any, four_threads: None
) -> None:
    write, failed = os.pwrite, []

    def failing(descriptor: int, data: Any, offset: int) -> int:
        time.sleep(0.001)
        if threading.current_thread().name.startswith(where):
            failed.append(offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(fv.CheckpointError, match=r"a\.h5: not saved: No space left on device"):
        writer.write(tmp_path / "a.h5", tensors(), {}, step=1)
    assert failed
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("four_threads")
def test_every_damaged_tensor_is_named_whoever_read_it(tmp_path: Path) -> None:
    made = tensors()
    path = tmp_path / "a.h5"
    writer.write(path, made, {}, step=1)
    with reader.File(path) as file:
        places = {name: entry.offset for name, entry in file.entries.items() if entry.offset is not None}
    with path.open("r+b") as stream:
        for offset in places.values():
            stream.seek(offset)
            byte = stream.read(1)[0]
            stream.seek(offset)
            stream.write(bytes([byte ^ 1]))
    with reader.File(path) as file, pytest.raises(fv.CheckpointError, match="damaged tensors") as told:
        file.verify()
    assert told.value.damaged == tuple(places)
    variables = {name.removeprefix("variables/"): fv.Variable(array) for name, array in made.items()}
    before = {name: variable.numpy() for name, variable in variables.items()}
    with pytest.raises(fv.CheckpointError, match="damaged tensors"):
        fv.Checkpoint(variables).restore(path)
    for name, variable in variables.items():
        np.testing.assert_array_equal(variable.value, before[name])
