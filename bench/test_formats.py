"""Compare gradients in 16 bits with float32, in a step of 16M elements, which is bound by memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

import fastvar as fv
from fastvar.benchmark.contenders import threads
from fastvar.benchmark.contest import repeated
from fastvar.benchmark.measure import Run, interleaved, ratio

ELEMENTS = 2**24
FORMATS = (np.float32, ml_dtypes.bfloat16, np.float16)
WANTED = {  # with bfloat16; float16 needs more arithmetic
    "SGD": (1.12, lambda: fv.optimizers.SGD(0.001)),
    "Adam": (1.04, lambda: fv.optimizers.Adam(0.001)),
}


def stepping(make: Callable[[], fv.Optimizer], stored: Any) -> Run:
    """Return a run of steps with a gradient of the dtype `stored`."""
    weights = fv.Variable(np.linspace(0.5, 1, ELEMENTS, dtype=np.float32))
    gradient = np.linspace(0.05, 0.15, ELEMENTS, dtype=np.float32).astype(stored)
    optimizer = make()
    optimizer.build([weights])
    return repeated(lambda: optimizer.apply([gradient]))


@pytest.fixture(scope="module")
def report() -> Iterator[Table]:
    table = Table(title="2^24 elements, 2 threads: a step, and how many times as fast as with float32 gradients")
    for column in ("optimizer", "gradient", "step", "x float32"):
        table.add_column(column, justify="left" if column in ("optimizer", "gradient") else "right")
    yield table
    Console(width=100).print(table)


@pytest.mark.parametrize("name", WANTED)
def test_gradients_in_16_bits_are_read_in_place(name: str, report: Table) -> None:
    wanted, make = WANTED[name]
    with threads(2):
        runs = {np.dtype(stored).name: stepping(make, stored) for stored in FORMATS}
        times = interleaved(runs, enough=10.0)
    for stored, took in times.items():
        report.add_row(name, stored, f"{median(took) * 1e3:.2f} ms", f"{ratio(times['float32'], took):.2f}")
    assert ratio(times["float32"], times["bfloat16"]) >= wanted
