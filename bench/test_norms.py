"""What norms cost: steps of optimizers and options that sum something first, in times of Adam's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import fastvar as fv
from bench import limit
from fastvar.benchmark.contenders import threads
from fastvar.benchmark.contest import repeated
from fastvar.benchmark.measure import Run, interleaved, ratio

LARGE, SMALL = (1, (2**12, 2**12)), (1000, (64,))  # how many variables, of which shape


class Goal(NamedTuple):
    """A step that sums first: its goal in times of Adam's step, and the arrays that it must move."""

    times_adam: float
    make: Callable[[], fv.Optimizer]
    read: int  # for the sums
    written: int  # by the update, which also reads them and the gradient


WANTED = {
    "Lamb": Goal(1.8, fv.optimizers.Lamb, 4, 3),
    "Lars": Goal(1.25, fv.optimizers.Lars, 2, 2),
    "Prodigy": Goal(2.3, fv.optimizers.Prodigy, 4, 4),
    "Adafactor": Goal(1.4, fv.optimizers.Adafactor, 3, 1),  # the gradient; the gradient and the weights
    "Adam, adaptive clipping": Goal(1.6, lambda: fv.optimizers.Adam(adaptive_clipnorm=0.01), 2, 3),
    "Adam, clipping, decay, average": Goal(
        1.6, lambda: fv.optimizers.Adam(global_clipnorm=1.0, weight_decay=0.01, use_ema=True), 1, 4
    ),
}


def stepping(make: Callable[[], fv.Optimizer], count: int, shape: tuple[int, ...]) -> Run:
    """Return what takes steps of float32 variables."""
    weights = [fv.Variable(np.linspace(0.5, 1, np.prod(shape), dtype="f4").reshape(shape)) for _ in range(count)]
    gradients = [np.linspace(0.05, 0.15, np.prod(shape), dtype="f4").reshape(shape) for _ in range(count)]
    optimizer = make()
    optimizer.build(weights)
    return repeated(lambda: optimizer.apply(gradients))


def traffic(read: int, written: int, size: int) -> Run:
    """Return what only moves as many arrays."""
    read_first = [np.full(size, 0.1, "f4") for _ in range(read)]
    updated = [np.full(size, 0.5, "f4") for _ in range(written)]
    run = limit.runner(updated, np.full(size, 0.1, "f4"), 2, read_first)
    if run is None:
        pytest.skip("needs a C compiler")
    return run


@pytest.fixture(scope="module")
def report() -> Iterator[Table]:
    table = Table(
        title="A step on 2 threads, in times of Adam's; limit: the same traffic alone, in times of Adam's traffic"
    )
    for column in ("variables", "optimizer", "step", "x Adam", "goal", "limit"):
        table.add_column(column, justify="left" if column in ("variables", "optimizer") else "right")
    yield table
    Console(width=100).print(table)


@pytest.mark.parametrize("name", WANTED)
def test_large(name: str, report: Table) -> None:
    goal, (count, shape) = WANTED[name], LARGE
    size = int(np.prod(shape))
    with threads(2):
        times = interleaved(
            {
                "Adam": stepping(fv.optimizers.Adam, count, shape),
                "Adam's limit": traffic(0, 3, size),
                name: stepping(goal.make, count, shape),
                "limit": traffic(goal.read, goal.written, size),
            },
            enough=8.0,
        )
    times_adam, of_limits = ratio(times[name], times["Adam"]), ratio(times["limit"], times["Adam's limit"])
    row = (f"{median(times[name]) * 1e3:.2f} ms", f"{times_adam:.2f}", f"{goal.times_adam}", f"{of_limits:.2f}")
    report.add_row(f"{count} x {shape}", name, *row)
    assert times_adam <= goal.times_adam


def test_many_small_with_lamb(report: Table) -> None:
    with threads(2):
        runs = {"Adam": stepping(fv.optimizers.Adam, *SMALL), "Lamb": stepping(fv.optimizers.Lamb, *SMALL)}
        times = interleaved(runs, enough=8.0)
    times_adam = ratio(times["Lamb"], times["Adam"])
    report.add_row(
        f"{SMALL[0]} x {SMALL[1]}", "Lamb", f"{median(times['Lamb']) * 1e3:.2f} ms", f"{times_adam:.2f}", "4", ""
    )
    assert times_adam <= 4
