"""What norms cost: steps of optimizers and options that sum something first, in times of Adam's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import fastvar as fv
from bench.contenders import repeated, threads
from bench.measure import Run, interleaved, ratio

LARGE, SMALL = (1, (2**12, 2**12)), (1000, (64,))  # how many variables, of which shape
WANTED: dict[str, tuple[float, Callable[[], fv.Optimizer]]] = {
    "Lamb": (1.8, fv.optimizers.Lamb),
    "Lars": (1.25, fv.optimizers.Lars),
    "Prodigy": (2.3, fv.optimizers.Prodigy),
    "Adafactor": (1.4, fv.optimizers.Adafactor),
    "Adam, adaptive clipping": (1.6, lambda: fv.optimizers.Adam(adaptive_clipnorm=0.01)),
    "Adam, clipping, decay, average": (
        1.6,
        lambda: fv.optimizers.Adam(global_clipnorm=1.0, weight_decay=0.01, use_ema=True),
    ),
}


def stepping(make: Callable[[], fv.Optimizer], count: int, shape: tuple[int, ...]) -> Run:
    """Return what takes steps of float32 variables."""
    weights = [fv.Variable(np.linspace(0.5, 1, np.prod(shape), dtype="f4").reshape(shape)) for _ in range(count)]
    gradients = [np.linspace(0.05, 0.15, np.prod(shape), dtype="f4").reshape(shape) for _ in range(count)]
    optimizer = make()
    optimizer.build(weights)
    return repeated(lambda: optimizer.apply(gradients))


@pytest.fixture(scope="module")
def report() -> Iterator[Table]:
    table = Table(title="A step on 2 threads, in times of Adam's")
    for column in ("variables", "optimizer", "step", "x Adam"):
        table.add_column(column, justify="left" if column in ("variables", "optimizer") else "right")
    yield table
    Console(width=100).print(table)


def compared(name: str, make: Any, report: Table, count: int, shape: tuple[int, ...]) -> float:
    with threads(2):
        runs = {"Adam": stepping(fv.optimizers.Adam, count, shape), name: stepping(make, count, shape)}
        times = interleaved(runs, enough=8.0)
    times_adam = ratio(times[name], times["Adam"])
    report.add_row(f"{count} x {shape}", name, f"{median(times[name]) * 1e3:.2f} ms", f"{times_adam:.2f}")
    return times_adam


@pytest.mark.parametrize("name", WANTED)
def test_large(name: str, report: Table) -> None:
    wanted, make = WANTED[name]
    assert compared(name, make, report, *LARGE) <= wanted


def test_many_small_with_lamb(report: Table) -> None:
    assert compared("Lamb", fv.optimizers.Lamb, report, *SMALL) <= 4
