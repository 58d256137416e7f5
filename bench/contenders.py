"""The contenders of a case: fastvar and its rivals, each on arrays of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from math import prod

import numpy as np

import fastvar as fv
from bench import in_torch, limit
from bench.as_written import Arrays, Step
from bench.cases import Case
from bench.measure import Run

Contender = tuple[Run, Arrays]  # a function that runs a number of steps; the weights that it updates

FASTVAR, WRITTEN, OUT, LIMIT, TORCH = "fastvar", "NumPy", "NumPy out=", "limit", "torch"


def repeated(step: Step) -> Run:
    def run(number: int) -> None:
        for _ in repeat(None, number):
            step()

    return run


def arrays(case: Case) -> tuple[Arrays, Arrays]:
    """Return weights and gradients of ordinary magnitude, so that no denormals occur."""
    count, size = case.shape
    shape = (1 << size.bit_length() // 2, -1) if case.algorithm.matrix else (size,)
    weights = [np.linspace(0.5, 1, size, dtype=case.dtype).reshape(shape) for _ in range(count)]
    return weights, [np.linspace(0.05, 0.15, size, dtype=case.dtype).reshape(shape) for _ in range(count)]


def fastvar(case: Case) -> Contender:
    weights, gradients = arrays(case)
    variables = [fv.Variable(w) for w in weights]
    optimizer = case.algorithm.optimizer()
    optimizer.build(variables)
    return repeated(lambda: optimizer.apply(gradients)), [v.value for v in variables]


def traffic_limit(case: Case) -> Run | None:
    """Return the limit for the same elements in one variable."""
    written = [fv.buffers.full((prod(case.shape),), case.dtype, 0.5) for _ in range(case.written)]
    g = np.full_like(written[0], 0.1)
    return limit.runner(written, g, case.threads, [g] if case.algorithm.clip_and_average else [])


def contenders(case: Case) -> dict[str, Contender]:
    """Return the available contenders. The limit has no weights: it computes nothing to compare."""
    made = {FASTVAR: fastvar(case)}
    for name, baseline in zip((WRITTEN, OUT), case.algorithm.numpy or (), strict=False):
        ws, gs = arrays(case)
        made[name] = repeated(baseline(ws, gs)), ws
    if (touch := traffic_limit(case)) is not None:
        made[LIMIT] = touch, []
    if case.algorithm.torch:
        ws, gs = arrays(case)
        made[TORCH] = repeated(in_torch.fused(ws, gs, case.algorithm.clip_and_average, **case.algorithm.torch)), ws
    return made


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let every contender use `count` threads."""
    before = fv.get_num_threads()
    fv.set_num_threads(count)
    of_torch = in_torch.set_threads(count)
    try:
        yield
    finally:
        fv.set_num_threads(before)
        in_torch.set_threads(of_torch)
