"""Compare steps whose moments decay to zero with steps in mid-training: a dead unit must not slow a step down.

One optimizer gets ordinary gradients. Another gets a few of these, and then zeros until nothing changes any more.
Both are measured in turn: denormals would show as a ratio of 2 to 4.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

import fastvar as fv
from fastvar.benchmark.cases import ALGORITHMS, Case
from fastvar.benchmark.contenders import threads
from fastvar.benchmark.contest import arrays, repeated
from fastvar.benchmark.measure import timed

ELEMENTS = 2**12
STEPS = 200  # in a measurement
AROUND = 9  # measurements in a window, of which the best counts: disturbances are shorter, denormals are not
MOST = 4500  # measurements: enough for a mean with decay 0.9999 to fall from 1 to the flush threshold
AFTER = 101  # measurements after nothing changes any more
LIMIT = 1.2
Figures = dict[str, tuple[float, float, float, int]]


@pytest.fixture(scope="module")
def figures() -> Any:
    rows: Figures = {}
    yield rows
    table = Table(title="Steps on 4,096 elements whose gradients are 0, over steps in mid-training")
    for column in ("rule", "mid-training", "at the end", "at worst on the way", "steps until nothing moves"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for name, (seconds, end, worst, steps) in rows.items():
        moves = f"{steps:,}" if steps < MOST * STEPS else f"more than {steps:,}"
        table.add_row(name, f"{seconds * 1e6:.2f} µs", f"{end:.2f}", f"{worst:.2f}", moves)
    Console(width=116).print(table)


def prepared(case: Case) -> tuple[Any, list[Any], fv.Optimizer]:
    weights, gradients = arrays(case)
    optimizer = case.algorithm.optimizer()
    optimizer.build([fv.Variable(w) for w in weights])
    run = repeated(lambda: optimizer.apply(gradients))
    run(10)
    return run, gradients, optimizer


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
def test_decayed_moments(algorithm: Any, figures: Figures) -> None:
    case = Case(algorithm, "float32", (1, ELEMENTS), 1)
    with threads(1):
        alive, _, _ = prepared(case)
        dying, gradients, optimizer = prepared(case)
        for g in gradients:
            g[...] = 0
        pairs, still, before = [], 0, b""
        while still < AFTER and len(pairs) < MOST:
            pairs.append((timed(dying, STEPS), timed(alive, STEPS)))
            now = b"".join(v.value.tobytes() for v in optimizer.variables)
            still, before = (still + 1 if now == before else 0), now
    windows = [zip(*pairs[i : i + AROUND], strict=True) for i in range(len(pairs) - AROUND + 1)]
    worst = max(min(a) / min(b) for a, b in windows)
    end, seconds = median(a / b for a, b in pairs[-AFTER:]), median(b for _, b in pairs) / STEPS
    figures[algorithm.name] = seconds, end, worst, (len(pairs) - still) * STEPS
    assert end <= LIMIT
