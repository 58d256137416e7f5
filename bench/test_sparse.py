"""Compare sparse gradients with PyTorch's SparseAdam, and with the dense update of the whole table."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.table import Table

import fastvar as fv
from fastvar.benchmark.contenders import threads
from fastvar.benchmark.contest import repeated
from fastvar.benchmark.measure import Run, interleaved, ratio

ROWS, WIDTH, TOUCHED = 10_000_000, 16, 1000  # float32: three arrays of 640 MB each
BATCHES = 64  # each with other rows, so that few are in the caches

Batches = list[tuple[Any, Any]]  # values, indices


def adam(batches: Batches) -> Run:
    table = fv.Variable(np.zeros((ROWS, WIDTH), np.float32))
    optimizer = fv.optimizers.Adam(0.001)
    optimizer.build([table])
    following = cycle(batches)
    return repeated(lambda: optimizer.apply([fv.IndexedSlices(*next(following))]))


def sparse_adam(batches: Batches) -> Run:
    table = torch.nn.Parameter(torch.zeros((ROWS, WIDTH)))
    optimizer = torch.optim.SparseAdam([table], lr=0.001)
    following: Iterator[Any] = cycle([[torch.from_numpy(a) for a in batch] for batch in batches])

    def step() -> None:
        values, indices = next(following)
        table.grad = torch.sparse_coo_tensor(indices[None], values, (ROWS, WIDTH), check_invariants=False)
        optimizer.step()

    return repeated(step)


def drawn(distinct: bool) -> Batches:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((BATCHES, TOUCHED, WIDTH)).astype(np.float32)
    if distinct:
        return [(v, rng.choice(ROWS, TOUCHED, replace=False)) for v in values]
    return [(v, rng.integers(0, ROWS // 10, TOUCHED // 4).repeat(4)) for v in values]


@pytest.fixture(scope="module")
def report() -> Iterator[Table]:
    table = Table(title=f"Adam, {TOUCHED:,} rows of a table of {ROWS:,} x {WIDTH} float32: a step")
    for column in ("rows", "fastvar", "torch", "x torch"):
        table.add_column(column, justify="left" if column == "rows" else "right")
    yield table
    Console(width=116).print(table)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("distinct", [True, False], ids=["distinct", "repeated"])
def test_sparse(distinct: bool, count: int, report: Table) -> None:
    batches = drawn(distinct)
    with threads(count):
        times = interleaved({"fastvar": adam(batches), "torch": sparse_adam(batches)}, seconds=0.02)
    cells = [f"{median(took) * 1e6:.0f} µs" for took in times.values()]
    cells.append(f"{ratio(times['torch'], times['fastvar']):.3g}")
    report.add_row(f"{'distinct' if distinct else 'each 4 times'}, {count} thread{'s' * (count > 1)}", *cells)


@pytest.mark.parametrize("distinct", [True, False], ids=["random", "each 4 times"])
def test_beside_the_dense_update(distinct: bool) -> None:
    rows, width, touched = 100_000, 32, 4096
    rng = np.random.default_rng(1)
    high, times = (rows, 1) if distinct else (rows, 4)
    indices = cycle([rng.integers(0, high, touched // times).repeat(times) for _ in range(BATCHES)])
    values, dense = (rng.standard_normal((n, width)).astype(np.float32) for n in (touched, rows))
    table = fv.Variable(np.zeros((rows, width), np.float32))
    optimizer = fv.optimizers.Adam(0.001)
    optimizer.build([table])
    with threads(1):
        took = interleaved(
            {
                "rows": repeated(lambda: optimizer.apply([fv.IndexedSlices(values, next(indices))])),
                "dense": repeated(lambda: optimizer.apply([dense])),
            },
            seconds=0.02,
        )
    of_rows, of_table = (median(took[name]) * 1e6 for name in ("rows", "dense"))
    print(
        f"\n{touched:,} rows of {rows:,} x {width}: {of_rows:.0f} µs, {of_rows / of_table:.2f} of the dense update"
    )
