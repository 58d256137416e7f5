"""Properties of single rules and optimizers, beyond the arithmetic that the cases compare."""

from __future__ import annotations

import copy
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar import kernels
from tests.support.cases import Case, assert_same_bits
from tests.support.runs import assert_all_same_bits, every_case, gradients, train, variables


@every_case
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_that_is_nan_reaches_the_weights(case: Case, steps: int, dtype: str) -> None:
    w = fv.Variable(np.linspace(-1, 1, 40), dtype=dtype)
    optimizer = case.make()
    optimizer.build([w])
    for _ in range(steps):
        optimizer.apply([np.full(40, 0.5)])
    gradient = np.full(40, 0.5)
    gradient[::3] = np.nan
    optimizer.apply([gradient])
    assert np.isnan(w.value[::3]).all()
    if not case.measures:
        assert_same_bits(np.isnan(w.value), np.isnan(gradient))


@every_case
def test_every_number_can_change_and_matters(case: Case) -> None:
    """Set each declared number between two steps: the next step uses the new value."""
    plain = case.make()
    begun = variables()
    train(plain, begun, 3)
    changed = 0
    for name, parameter in type(plain).parameters.items():
        if not parameter.numeric or not parameter.per_group:
            continue
        value = plain._parameters[name]
        other = 0.375 if value is None else 0.5 * value if value else 0.25
        try:
            parameter.check(other)
        except ValueError:  # such as eta_plus, which stays above 1
            continue
        of, optimizer = copy.deepcopy((begun, plain))
        expected_of, expected = copy.deepcopy((begun, plain))
        setattr(optimizer, name, lambda step, other=other: other)
        setattr(expected, name, other)
        assert_all_same_bits(train(optimizer, of, 2, 3), train(expected, expected_of, 2, 3))
        as_before = copy.deepcopy((begun, plain))
        changed += any((a != b).any() for a, b in zip(of, train(as_before[1], as_before[0], 2, 3), strict=True))
    assert changed >= 2  # learning rate (but of Rprop), weight decay, ...


def nadam(beta_1: float, t: int) -> tuple[float, ...]:
    hyper = SimpleNamespace(learning_rate=0.25, beta_1=beta_1, beta_2=0.75, epsilon=0.125)
    return fv.optimizers.Nadam().scalars(hyper, t)


@pytest.mark.parametrize("beta_1", [0.0, 0.5, 0.9, 0.999])
def test_products_of_nadam_are_those_of_all_momenta(beta_1: float) -> None:
    for t in (1, 2, 10, 889, 890, 891, 892, 5000):
        mu = [beta_1 * (1 - 0.5 * 0.96**i) for i in range(1, t + 2)]
        by_m, by_g = 0.25 * mu[t] / (1 - prod(mu)), 0.25 * (1 - mu[t - 1]) / (1 - prod(mu[:t]))
        assert nadam(beta_1, t)[3:5] == pytest.approx((by_m, by_g), rel=1e-12)


def test_variance_of_rmsprop_is_never_negative() -> None:
    """The variance of constant gradients is 0, and rounding can make it negative."""
    w = fv.Variable(np.linspace(1, 50, 1000), dtype="float32")
    optimizer = fv.optimizers.RMSprop(0.001, centered=True)
    for _ in range(300):
        optimizer.apply([np.linspace(1, 50, 1000)], [w])
    assert np.isfinite(w.value).all()


def test_ftrl_changes_its_rule_with_its_power() -> None:
    given, alone = variables(), variables()
    optimizer = fv.optimizers.Ftrl(0.25)
    optimizer.build(given)
    powers = [-0.5, -0.75, 0.0, -0.5]
    for t, power in enumerate(powers):
        optimizer.learning_rate_power = power
        optimizer.apply(gradients(t), given)
        assert (optimizer.rule() is kernels.RULES["ftrl"]) == (power == -0.5)
    scheduled = fv.optimizers.Ftrl(0.25, lambda step: powers[step])
    for t in range(len(powers)):
        scheduled.apply(gradients(t), alone)
    for a, b in zip(given, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_ftrl_of_any_power_is_the_compiled_one_at_one_half() -> None:
    options: dict[str, Any] = {"learning_rate": 0.25, "l1_regularization_strength": 0.25, "beta": 0.5}
    for dtype in ("float32", "float64"):
        compiled = train(fv.optimizers.Ftrl(**options), variables(dtype), 7)
        numpy = train(fv.optimizers.Ftrl(**options, learning_rate_power=lambda step: -0.5), variables(dtype), 7)
        for a, b in zip(compiled, numpy, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=100 * np.finfo(dtype).eps)


def test_l1_of_ftrl_leaves_exact_zeros() -> None:
    w = fv.Variable(np.zeros(1000))
    optimizer = fv.optimizers.Ftrl(0.25, l1_regularization_strength=1.0)
    gradient = np.random.default_rng(0).standard_normal(1000)
    optimizer.apply([gradient], [w])
    assert_same_bits(w.value == 0, np.abs(gradient) <= 1)


def test_rprop_refuses_bounds_that_cross() -> None:
    w = fv.Variable([1.0])
    optimizer = fv.optimizers.Rprop(step_size_min=1.0, step_size_max=0.5)
    with pytest.raises(ValueError, match=r"Rprop: step_size_min must be <= step_size_max, 0.5, got 1"):
        optimizer.apply([[1.0]], [w])
    assert (w.value, optimizer.iterations) == (1.0, 0)


def test_momentum_that_a_schedule_brings_later_has_its_slot() -> None:
    def late(step: int) -> float:
        return 0.5 * (step > 2)

    for make in (fv.optimizers.SGD, fv.optimizers.RMSprop):
        given, alone = variables(), variables()
        scheduled, expected = make(0.25, momentum=late), make(0.25, momentum=0.25)
        train(scheduled, given, 6)
        expected.build(alone)
        for t in range(6):
            expected.momentum = late(t) or 1e-300
            expected.apply(gradients(t))
        for a, b in zip(given, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_slots_begin_with_values_of_the_group() -> None:
    for name, slot in (("Adagrad", "accumulator"), ("Ftrl", "accumulator"), ("Yogi", "velocity")):
        first, second = fv.Variable([1.0]), fv.Variable([2.0])
        optimizer = getattr(fv.optimizers, name)(initial_accumulator_value=0.25)
        optimizer.build([first, {"variables": [second], "initial_accumulator_value": 0.5}])
        assert [float(optimizer.slot(v, slot).value[0]) for v in (first, second)] == [0.25, 0.5]


def test_the_mean_of_schedule_free_weights_is_that_of_the_fast_ones() -> None:
    w = fv.Variable([1.0, -2.0])
    optimizer = fv.optimizers.ScheduleFreeAdamW(0.125, beta_1=0.75)
    fast = []
    for t in range(9):
        optimizer.apply([[0.5, t - 4.0]], [w])
        fast.append(optimizer.slot(w, "momentum").numpy())
        mean = (w.value - 0.25 * fast[-1]) / 0.75
        np.testing.assert_allclose(mean, np.mean(fast, axis=0), rtol=1e-13)
