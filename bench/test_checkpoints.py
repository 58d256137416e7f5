"""Compare saving and restoring with other libraries, and with plain reads and writes, in one run.

    python -m pytest bench/test_checkpoints.py -s

Every save makes a new file, and the last one is removed between measurements. With fsync, the files of the other
libraries are synchronised after their save, as a careful program would do.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import fastvar as fv
from bench.savers import FASTVAR, RAW, Saver, Training, savers, sync
from fastvar.benchmark.contenders import threads
from fastvar.benchmark.measure import ratio
from fastvar.checkpoint import writer
from fastvar.tables import duration

SIZES = {
    "one gigabyte": [1 << 20] * 85,  # float32, with two moments each
    "2,000 small": [64] * 667,
}
ROUNDS = {"one gigabyte": 7, "2,000 small": 11}
Times = dict[str, list[float]]
T = TypeVar("T")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with NumPy


def took(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


@pytest.fixture(scope="module", params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def everyone(size: str) -> dict[str, Saver]:
    return savers(Training(SIZES[size]))


@pytest.fixture(scope="module")
def show() -> Iterator[Callable[..., None]]:
    """Print the tables at the end."""
    tables: list[Table] = []

    def add(title: str, columns: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="left" if column == columns[0] else "right")
        for row in rows:
            table.add_row(*row)
        tables.append(table)

    yield add
    for table in tables:
        Console(width=110).print("\n", table)


def drop(folder: str) -> None:
    """Drop the files from the system's cache."""
    sync(folder)
    for name in os.listdir(folder):
        descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def settle(size: str) -> None:
    """Let the system write pending data, and get back memory that a virtual machine may have lent."""
    os.sync()
    np.ones(6 * sum(SIZES[size]), np.float32)  # twice the size of the state; freed at once


def shuffled(everyone: dict[str, T], number: int) -> list[tuple[str, T]]:
    """Return all in a different order for each round: each can help or harm the next."""
    return random.Random(number).sample(list(everyone.items()), len(everyone))


def rows(times: Times) -> list[list[str]]:
    raw, ours = times[RAW], times[FASTVAR]
    return [
        [name, duration(median(t)), f"{1 / ratio(t, raw):.2f}", "" if name == FASTVAR else f"{ratio(t, ours):.2f}"]
        for name, t in times.items()
    ]


@pytest.mark.parametrize("durable", [True, False], ids=["fsync", "no-fsync"])
def test_save(size: str, durable: bool, everyone: dict[str, Saver], show: Any, tmp_path: Path) -> None:
    times: Times = {name: [] for name in everyone}
    with mock.patch.object(os, "fsync", os.fsync if durable else lambda descriptor: None):  # sync() calls it, too
        for number in range(ROUNDS[size]):
            for name, saver in shuffled(everyone, number):
                settle(size)
                with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
                    own = name in (FASTVAR, RAW)
                    times[name].append(took(lambda s=saver, f=folder, own=own: (s.save(f), own or sync(f))))
    how = "durable" if durable else "without fsync"
    show(f"Save, {size}, {how}", ["", "median", "of raw speed", "x fastvar"], rows(times))


@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
def test_restore(size: str, cold: bool, everyone: dict[str, Saver], show: Any, tmp_path: Path) -> None:
    times: Times = {name: [] for name in everyone}
    for name, saver in everyone.items():
        folder = tmp_path / str(list(everyone).index(name))
        folder.mkdir()
        saver.save(str(folder))
    for number in range(ROUNDS[size]):
        for name, saver in shuffled(everyone, number):
            folder = tmp_path / str(list(everyone).index(name))
            settle(size)
            if cold:
                drop(str(folder))
            else:
                saver.load(str(folder))
            times[name].append(took(lambda saver=saver, folder=folder: saver.load(str(folder))))
    how = "from the disk" if cold else "from the system's cache"
    show(f"Restore (fastvar: verified), {size}, {how}", ["", "median", "of raw speed", "x fastvar"], rows(times))


@pytest.mark.parametrize("cold", [False, True], ids=["cached", "cold"])
def test_restore_in_a_new_process(cold: bool, show: Any, tmp_path: Path) -> None:
    """Restore as a resumed program does: memory is new, and no optimizer is built."""
    sizes = SIZES["one gigabyte"]
    times: Times = {RAW: [], FASTVAR: []}
    Training(sizes).checkpoint.save(tmp_path / "model.h5")
    os.link(tmp_path / "model.h5", tmp_path / "raw")  # the same place on the disk: some are slower
    for number in range(2 * ROUNDS["one gigabyte"]):
        for name, seconds in shuffled(times, number):
            if cold:
                drop(str(tmp_path))
            command = [sys.executable, "-m", "bench.resume", tmp_path, name, len(sizes), sizes[0]]
            done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
            seconds.append(float(done.stdout))
    how = "from the disk" if cold else "from the system's cache"
    show(
        f"Restore, one gigabyte, in a new process, {how}", ["", "median", "of raw speed", "x fastvar"], rows(times)
    )


class NoHash:
    """A hash that costs nothing."""

    def update(self, data: object) -> None:
        pass

    def hexdigest(self) -> str:
        return "0" * 32


@pytest.mark.parametrize("durable", [True, False], ids=["fsync", "no-fsync"])
def test_hashing(durable: bool, show: Any, tmp_path: Path) -> None:
    training = Training(SIZES["one gigabyte"])
    ways = {"hashed": writer.xxhash.xxh3_128, "not hashed": NoHash}
    times: Times = {name: [] for name in ways}
    with mock.patch.object(os, "fsync", os.fsync if durable else lambda descriptor: None):
        for number in range(2 * ROUNDS["one gigabyte"]):
            for name, digest in shuffled(ways, number):
                settle("one gigabyte")
                with (
                    tempfile.TemporaryDirectory(dir=tmp_path) as folder,
                    mock.patch.object(writer.xxhash, "xxh3_128", digest),
                ):
                    times[name].append(took(lambda folder=folder: training.checkpoint.save(f"{folder}/a.h5")))
    cost = ratio(times["hashed"], times["not hashed"]) - 1
    cells = [[name, duration(median(t))] for name, t in times.items()] + [["hashing adds", f"{cost:.1%}"]]
    show(f"Save, one gigabyte, {'durable' if durable else 'without fsync'}", ["", ""], cells)


@pytest.mark.parametrize("count", [1, 2])
def test_background(count: int, show: Any, tmp_path: Path) -> None:
    training = Training(SIZES["one gigabyte"])
    small = Training([4096] * 100)  # its steps are the training beside the save
    target = {name: np.zeros_like(a) for name, a in training.arrays.items()}

    def copy() -> None:
        for name, array in training.arrays.items():
            np.copyto(target[name], array)

    def steps(number: int) -> list[float]:
        return [took(small.step) for _ in range(number)]

    blocked: Times = {"save(blocking=False)": [], "one copy": []}
    alone, beside = [], []
    with threads(count), fv.CheckpointManager(training.checkpoint, tmp_path, max_to_keep=1) as manager:
        manager.save(0, blocking=False)  # allocates buffers, which later saves reuse
        for step in range(1, 6):
            manager.wait()
            blocked["one copy"].append(took(copy))
            alone.append(median(steps(400)))
            blocked["save(blocking=False)"].append(took(lambda step=step: manager.save(step, blocking=False)))
            during = []
            while manager._background.busy:
                during += steps(20)
            beside.append(median(during))
    share = ratio(blocked["save(blocking=False)"], blocked["one copy"])
    cells = {name: duration(median(t)) for name, t in blocked.items()}
    cells |= {"that is, copies": f"{share:.2f}", "a step alone": duration(median(alone))}
    cells |= {"beside the writing": duration(median(beside)), "slower by": f"{ratio(beside, alone) - 1:.1%}"}
    rows = [[*cell] for cell in cells.items()]
    show(f"Saving one gigabyte in the background, training on {count} thread(s)", ["", ""], rows)


def test_memory(show: Any, tmp_path: Path) -> None:
    training = Training([1 << 16] * 10)
    resident = []
    with fv.CheckpointManager(training.checkpoint, tmp_path, max_to_keep=2) as manager:
        for step in range(1001):
            manager.save(step, blocking=bool(step % 2))
            if step % 250 == 0:
                manager.wait()
                resident.append(
                    int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
                )
    row = ["resident, MB", *(f"{size:.1f}" for size in resident)]
    show("Memory over saves", ["saves", *map(str, range(0, 1001, 250))], [row])
