"""Time saves of many small tensors, also the first one, and how long a save in the background blocks.

    python bench/small.py [TREE ...]

Each TREE is another working tree of fastvar with built kernels, such as that of an older commit. It is measured in
the same run. Every measurement has a process of its own, because a process has only one first save.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

HERE = str(Path(__file__).parent.parent)
COUNTS = (3_000, 30_000)  # of tensors: one third are variables, two thirds their moments
ROUNDS = 3


def took(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def training(fv: Any, count: int, size: int) -> tuple[list[Any], Any, Callable[[], None]]:
    """Return variables, their optimizer, and its step."""
    weights = [fv.Variable(np.zeros(size, np.float32), name=f"w{i}") for i in range(count)]
    optimizer = fv.optimizers.Adam(1e-3)
    gradients = [np.ones(size, np.float32)] * count
    optimizer.apply(gradients, weights)
    return weights, optimizer, lambda: optimizer.apply(gradients, weights)


@contextmanager
def managed(fv: Any, count: int, history: dict[str, Any]) -> Iterator[Any]:
    weights, optimizer, _ = training(fv, count // 3, 16)
    checkpoint = fv.Checkpoint(variables=weights, optimizer=optimizer, history=history)
    with tempfile.TemporaryDirectory() as folder, fv.CheckpointManager(checkpoint, folder, 1) as manager:
        yield manager


def blocking(fv: Any, count: int) -> dict[str, float]:
    history = {"array": np.zeros(10)}
    with managed(fv, count, history) as manager:
        found = {"the first save, µs a tensor": took(lambda: manager.save(1))}
        found["a later one"] = median(took(lambda: manager.save(2)) for _ in range(3))
        history["array"] = np.zeros(1000)
        found["with an array that has grown"] = took(lambda: manager.save(3))
    return {name: seconds / count * 1e6 for name, seconds in found.items()}


def background(fv: Any, count: int) -> dict[str, float]:
    fv.set_num_threads(1)
    _, _, step = training(fv, 10, 30_000)  # the training beside the save
    with managed(fv, count, {}) as manager:
        arrays = manager.checkpoint.collect()[0].values()
        copy = median(took(lambda: [np.copy(array) for array in arrays]) for _ in range(3))
        alone = [took(step) for _ in range(1000)]
        stall = took(lambda: manager.save(1, blocking=False))
        beside = []
        while manager._background.busy:
            beside.append(took(step))
        alone += [took(step) for _ in range(1000)]
        manager.wait()
        later = took(lambda: manager.save(2, blocking=False))
    return {
        "blocked by the first in the background, beyond 1.3 copies": (stall - 1.3 * copy) / count * 1e6,
        "by a later one": (later - 1.3 * copy) / count * 1e6,
        "steps during the first save are slower by, %": (mean(beside) / mean(alone) - 1) * 100 if beside else 0.0,
    }


def measured(tree: str, count: int) -> dict[str, float]:
    """Measure a tree in two new processes."""
    found: dict[str, float] = {}
    for kind in (blocking, background):
        command = [sys.executable, __file__, "--measure", kind.__name__, str(count)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": tree}, check=True, stdout=subprocess.PIPE)
        found |= json.loads(done.stdout)
    return found


def main(trees: list[str]) -> None:
    for count in COUNTS:
        figures: dict[str, list[dict[str, float]]] = {tree: [] for tree in trees}
        for _ in range(ROUNDS):
            for tree in trees:
                figures[tree].append(measured(tree, count))
        table = Table("", *trees, title=f"{count} small tensors")
        for name in figures[HERE][0]:
            table.add_row(name, *(f"{median(row[name] for row in figures[tree]):.1f}" for tree in trees))
        Console(width=160).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        import fastvar

        print(json.dumps({"blocking": blocking, "background": background}[sys.argv[2]](fastvar, int(sys.argv[3]))))
    else:
        main([HERE, *sys.argv[1:]])
