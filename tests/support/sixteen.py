"""Variables of 16 bits for tests, and gradients for them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastvar as fv
from tests.support.runs import SHAPES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES: list[Any] = [BFLOAT16, np.dtype(np.float16)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
Arrays = list[np.ndarray[Any, Any]]


def values() -> Arrays:
    rng = np.random.default_rng(1)
    return [np.asarray(rng.standard_normal(s), np.float32) for s in SHAPES]


def variables(dtype: Any, **options: Any) -> list[fv.Variable]:
    return [fv.Variable(x.astype(dtype), name=f"v{i}", **options) for i, x in enumerate(values())]


def like(dtype: Any, **options: Any) -> list[fv.Variable]:
    """Return variables of float32 with the same numbers."""
    return [fv.Variable(v.value.astype("f4"), name=v.name, **options) for v in variables(dtype)]


def gradients(t: int, dtype: Any = np.float32) -> Arrays:
    rng = np.random.default_rng(100 + t)
    return [np.asarray(rng.standard_normal(s), "f4").astype(dtype) for s in SHAPES]


class Net(fv.Module):
    def __init__(self, dtype: Any) -> None:
        self.w = fv.Variable(values()[0].astype(dtype))
        self.b = fv.Variable(np.zeros(5, np.float32))


def step(net: Net, optimizer: fv.Optimizer, start: int, steps: int) -> None:
    optimizer.build(net)
    for t in range(start, start + steps):
        optimizer.apply(gradients(t)[:2])
