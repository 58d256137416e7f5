"""Short training runs on a few variables of unusual shapes, for the tests of optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import CASES, assert_same_bits

SHAPES = [(7, 5), (5,), (), (70, 31), (0, 3)]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
elementwise, several_passes = (
    pytest.mark.parametrize("case", [c for c in CASES if c.measures == several], ids=lambda case: case.id)
    for several in (False, True)
)
ALL_OPTIONS: dict[str, Any] = {
    "weight_decay": 0.3,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 3,
    "loss_scale_factor": 7.0,
}
COMBINATIONS = [
    {},
    {**ALL_OPTIONS, "clipnorm": 0.7},
    {**ALL_OPTIONS, "clipvalue": 0.1},
    {**ALL_OPTIONS, "global_clipnorm": 0.7, "gradient_accumulation_steps": 3},
]


def variables(dtype: str = "float32", **options: Any) -> list[fv.Variable]:
    rng = np.random.default_rng(1)
    return [
        fv.Variable(rng.standard_normal(s), dtype=dtype, name=f"v{i}", **options) for i, s in enumerate(SHAPES)
    ]


def gradients(t: int = 0, dtype: str = "float32") -> list[Any]:
    rng = np.random.default_rng(100 + t)
    return [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]


def train(optimizer: fv.Optimizer, of: list[fv.Variable], steps: int = 5, start: int = 0) -> list[Any]:
    for t in range(start, start + steps):
        optimizer.apply(gradients(t, str(of[0].dtype)), of)
    return [v.numpy() for v in of]


def assert_all_same_bits(actual: Any, expected: Any) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(np.asarray(a), np.asarray(e))


def state(optimizer: fv.Optimizer) -> list[Any]:
    return [v.numpy() for v in optimizer.variables]


def slots_of(optimizer: fv.Optimizer, variable: fv.Variable) -> list[Any]:
    kept = [name for name in optimizer.slots if optimizer.has_slot(name, variable)]
    return [optimizer.slot(variable, name).numpy() for name in kept]
