"""Steps of fastvar.torch beside those of the installed torch.optim.

Both round every operation by half a unit in the last place, in a different order. With some 6 operations for a
weight, 20 steps make 60 units; momentum makes it more, cancellation less. Weights must agree to 100 units in the
last place of their value or of 1, near which they begin; states to 100 units of the largest element that they have
had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fastvar as fv
import fastvar.torch
from tests.support.oracles import default_dtype
from tests.support.runs import gradients, variables
from tests.support.torch_cases import make

STEPS = 20
BOUND = 100  # units in the last place


def follow(
    name: str,
    options: dict[str, Any],
    dtype: str,
    groups: Callable[[list[Any]], Any] = lambda params: params,
    each_step: Callable[[int, Any], object] = lambda t, optimizer: None,
    present: Callable[[int, int], bool] = lambda t, i: True,
) -> fv.torch.TorchOptimizer:
    """Compare every one of 20 steps, calling `each_step(t, optimizer)` for both optimizers before it.

    In step t, variable i has a gradient if `present(t, i)`.
    """
    with default_dtype(dtype):
        ours = variables(dtype)
        theirs = [torch.nn.Parameter(torch.tensor(v.value)) for v in ours]
        start, most = [v.numpy() for v in ours], [{} for _ in ours]
        mine = make(name, groups(ours), **options)
        other = getattr(torch.optim, name)(groups(theirs), **options)
        for t in range(STEPS):
            grads = gradients(t, dtype)
            grads[0][0] = 0  # which only a fitting epsilon survives
            each_step(t, mine)
            each_step(t, other)
            for i, (v, p, g) in enumerate(zip(ours, theirs, grads, strict=True)):
                v.grad, p.grad = (g, torch.tensor(g)) if present(t, i) else (None, None)
            mine.step()
            other.step()
            for v, p in zip(ours, theirs, strict=True):
                assert_close(v, p.detach(), 1, f"weights after step {t}")
            for v, p, of in zip(ours, theirs, most, strict=True):
                assert_same_state(mine, v, other.state[p], of, t)
    for v, before in zip(ours, start, strict=True):
        assert v.size == 0 or (v.value != before).any()
    return mine


def assert_close(actual: fv.Variable, expected: Any, least: float, what: str) -> None:
    expected = expected.numpy()
    assert actual.dtype == expected.dtype
    units = np.finfo(expected.dtype).eps * np.maximum(np.abs(expected), least)
    assert (np.abs(actual.value - expected) <= BOUND * units).all(), what


def assert_same_state(mine: Any, v: fv.Variable, theirs: dict[str, Any], most: dict[str, float], t: int) -> None:
    arrays = {k for k, x in theirs.items() if isinstance(x, torch.Tensor) and k not in ("step", "eta", "mu")}
    arrays -= {"mu_product"}
    assert arrays <= set(mine._state.slots)
    for slot in arrays:
        if v.size:
            most[slot] = max(float(theirs[slot].abs().max()), most.get(slot, 0))
            assert_close(mine.slot(v, slot), theirs[slot], most[slot], f"{slot} after step {t}")
