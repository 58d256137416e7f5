"""The same rules in numba: a compiled loop over the elements of a variable, called for each."""

from __future__ import annotations

import itertools
from math import sqrt
from typing import Any

import numpy as np

from fastvar.benchmark.cases import Case
from fastvar.benchmark.contest import Contender, Prepared, arrays

NAME = "numba"
_PARALLEL = 2**15  # elements: with fewer, threads cost more than they save


def _rules(parallel: bool) -> dict[str, Any]:
    from numba import njit, prange

    @njit(parallel=parallel, error_model="numpy")  # type: ignore[untyped-decorator]
    def sgd(w: Any, g: Any, m: Any, v: Any, rate: Any, a: Any, b: Any, c: Any) -> None:
        for i in prange(w.size):
            w[i] -= rate * g[i]

    @njit(parallel=parallel, error_model="numpy")  # type: ignore[untyped-decorator]
    def momentum(w: Any, g: Any, m: Any, v: Any, rate: Any, a: Any, b: Any, c: Any) -> None:
        for i in prange(w.size):
            m[i] = a * m[i] - rate * g[i]
            w[i] += m[i]

    @njit(parallel=parallel, error_model="numpy")  # type: ignore[untyped-decorator]
    def adam(w: Any, g: Any, m: Any, v: Any, rate: Any, a: Any, b: Any, epsilon: Any) -> None:
        for i in prange(w.size):
            m[i] += (g[i] - m[i]) * a
            v[i] += (g[i] * g[i] - v[i]) * b
            w[i] -= rate * m[i] / (np.sqrt(v[i]) + epsilon)

    return {"sgd": sgd, "momentum": momentum, "adam": adam}


def _scalars(case: Case, t: int) -> Any:
    if case.algorithm.name != "adam":
        return np.array([0.001, 0.9, 0, 0], case.dtype)
    first, second = 1 - 0.9**t, 1 - 0.999**t
    return np.array([0.001 * sqrt(second) / first, 0.1, 0.001, 1e-8 * sqrt(second)], case.dtype)


def _prepare(case: Case) -> Prepared:
    set_threads(case.threads)
    update = _rules(case.threads > 1 and case.elements >= _PARALLEL * len(case.tensors))[case.algorithm.name]
    weights, gradients = arrays(case)
    rows = [
        (w.reshape(-1), g.reshape(-1), np.zeros(w.size, w.dtype), np.zeros(w.size, w.dtype))
        for w, g in zip(weights, gradients, strict=True)
    ]
    steps = itertools.count(1)

    def step() -> None:
        scalars = _scalars(case, next(steps))
        for row in rows:
            update(*row, *scalars)

    return Prepared(step, lambda: weights)


def set_threads(count: int) -> int:
    """Set numba's number of threads, and return the one before."""
    import numba

    before: int = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    return before


CONTENDER = Contender("numba", NAME, lambda case: case.algorithm.name in ("sgd", "momentum", "adam"), _prepare)
