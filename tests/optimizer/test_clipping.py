"""Adaptive clipping, which takes a pass of its own, works with every rule and option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.optimizer.clipping import units
from tests.support.cases import Case
from tests.support.runs import COMBINATIONS, assert_all_same_bits, every_case, gradients, state, train, variables


def by_equation_3(clipping: float, w: Any, g: Any) -> Any:
    """Clip the gradient of each unit to its weights' norm, as the paper says."""
    columns = [x.reshape(units(w.shape)).astype(np.float64) for x in (w, g)]
    w_norms, g_norms = (np.sqrt((x * x).sum(axis=0)) for x in columns)
    most = clipping * np.maximum(w_norms, 1e-3)
    scale = np.where(g_norms < most, 1.0, most / np.maximum(g_norms, 1e-6)).astype(g.dtype)
    return (g.reshape(units(w.shape)) * scale).reshape(g.shape) if g.size else g


@every_case
@pytest.mark.parametrize("steps", [None, 3])
def test_clipping_units_is_handing_in_the_clipped_gradients(case: Case, steps: int | None) -> None:
    """Clip with L2, decay and averages; and clip the mean of accumulated gradients."""
    options: dict[str, Any] = {"weight_decay": 0.25, "use_ema": True, "ema_momentum": 0.5}
    given, by_hand = variables(), variables()
    clipped = case.make(**options, adaptive_clipnorm=0.25, gradient_accumulation_steps=steps)
    plain = case.make(**options)
    plain.build(by_hand)
    total = [np.zeros(v.shape, np.float32) for v in given]
    for t in range(6):
        grads = gradients(t)
        clipped.apply(grads, given)
        total = [np.asarray(a + g) for a, g in zip(total, grads, strict=True)]
        if steps and (t + 1) % steps:
            continue
        means = [np.asarray(a * np.float32(1 / (steps or 1))) for a in total]
        for v, mean in zip(by_hand, means, strict=True):
            mean[...] = by_equation_3(0.25, v.value, mean)
        plain.apply(means)
        total = [np.zeros(v.shape, np.float32) for v in given]
    assert_all_same_bits(given, by_hand)
    if steps is None:
        assert_all_same_bits(state(clipped), state(plain))


@every_case
@pytest.mark.parametrize("options", COMBINATIONS[:1], ids=["plain"])
def test_a_loose_clip_changes_nothing(case: Case, options: dict[str, Any]) -> None:
    clipped, plain = case.make(adaptive_clipnorm=1e6, **options), case.make(**options)
    np.testing.assert_equal(*(train(o, variables()) for o in (clipped, plain)))


def test_one_clipping_at_a_time() -> None:
    with pytest.raises(ValueError, match="only one of clipnorm and adaptive_clipnorm can be set"):
        fv.optimizers.SGD(clipnorm=1.0, adaptive_clipnorm=0.1)
    optimizer, given = fv.optimizers.SGD(0.5), variables()
    train(optimizer, given, 2)
    optimizer.adaptive_clipnorm = 0.01
    before = [v.numpy() for v in given]
    train(optimizer, given, 1, 2)
    for v, w in zip(given, before, strict=True):
        assert np.linalg.norm(v - w) <= 0.0051 * max(np.linalg.norm(w), 1e-3 * w.shape[-1] if w.ndim else 1e-3)
