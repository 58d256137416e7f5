"""The slots of a dead unit keep no denormal numbers, which would slow down every later step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.kernels.stages import TINY
from tests.support.cases import CASES, JOBS, Case
from tests.support.runs import every_case

ROOT = Path(fv.__file__).parent
STEPS, EVERY = 1000, 50
ELEMENTS = 32 * 128


def spread(dtype: str) -> Any:
    """Gradients of every magnitude whose square is a normal number.

    Then some element of a moment becomes denormal within a few steps, however slowly the moment decays.
    """
    lowest = np.log10(np.finfo(dtype).tiny) / 2 + 0.5
    magnitudes = np.logspace(lowest, 0, ELEMENTS).reshape(32, 128)
    return (np.where(np.indices(magnitudes.shape).sum(axis=0) % 2, -1, 1) * magnitudes).astype(dtype)


def denormals(array: Any) -> int:
    return int(((array != 0) & (np.abs(array) < np.finfo(array.dtype).tiny)).sum())


def slots_hold_none(optimizer: fv.Optimizer, dtype: str) -> None:
    gradient = spread(dtype)
    variables = [fv.Variable(np.full(shape, 0.5), dtype=dtype) for shape in (ELEMENTS, gradient.shape)]
    optimizer.build(variables)
    for _ in range(3):
        optimizer.apply([gradient.reshape(-1), gradient])
    zeros = [np.zeros_like(v.value) for v in variables]
    for t in range(STEPS):
        optimizer.apply(zeros)
        if t % EVERY == 0 or t == STEPS - 1:
            held = {v.name: n for v in optimizer.variables if (n := denormals(v.value))}
            assert not held, f"after {t + 1} steps"


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_slot_holds_denormals(case: Case, dtype: str) -> None:
    slots_hold_none(case.make(), dtype)


def test_every_optimizer_is_asked() -> None:
    asked = {case.optimizer for case in CASES}
    assert asked | {"LBFGS", "LossScaleOptimizer"} == {job.optimizer for job in JOBS}  # these keep no slots


def test_a_rule_that_does_not_flush_is_found() -> None:
    class Careless(fv.Optimizer):
        slots = ("momentum",)

        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            slots.momentum += (gradient - slots.momentum) * np.float32(0.1)

    with pytest.raises(AssertionError, match="after"):
        slots_hold_none(Careless(), "float32")


def test_the_threshold_is_documented_once() -> None:
    pattern = re.compile(r"(\d+)\s+times\s+the\s+smallest\s+normal")
    stated = {path: found for path in ROOT.rglob("*.py") if (found := pattern.findall(path.read_text()))}
    assert len(stated) == 1
    (numbers,) = stated.values()
    assert numbers == [f"{TINY[np.dtype(np.float32)] / np.finfo(np.float32).tiny:.0f}"]
    assert pattern.findall(fv.optimizers.__doc__ or "") == numbers
