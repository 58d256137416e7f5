"""Steps with infinite or NaN gradients run, are skipped, or raise; loss scales react to them."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from tests.support.cases import CASES, Case, assert_same_bits, contents, digest
from tests.support.runs import (
    ALL_OPTIONS,
    COMBINATIONS,
    assert_all_same_bits,
    every_case,
    gradients,
    state,
    train,
    variables,
)
from tests.support.torch_cases import OWN

BAD = [np.nan, np.inf, -np.inf]


def spoilt(t: int, value: float, of: int = 3) -> list[Any]:
    grads = gradients(t)
    grads[of].flat[-1] = value
    return grads


@every_case
@pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))
@pytest.mark.parametrize("value", BAD)
def test_a_bad_step_changes_nothing(case: Case, options: dict[str, Any], value: float) -> None:
    given, twins = variables(), variables()
    optimizer = case.make(nonfinite="skip", **options)
    plain = case.make(**options)
    for t in range(7):
        if t in (0, 3, 4):
            optimizer.build(given)
            before, skips = contents(optimizer, given), optimizer.skipped
            optimizer.apply(spoilt(t, value), given)
            assert contents(optimizer, given) == before
            assert optimizer.skipped == skips + 1
        train(optimizer, given, 1, start=t)
        train(plain, twins, 1, start=t)
    assert_all_same_bits(given, twins)
    assert_all_same_bits(state(optimizer), state(plain))
    assert (optimizer.skipped, plain.skipped) == (3, 0)


@every_case
@pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_raising_names_the_variable_and_changes_nothing(case: Case, options: dict[str, Any]) -> None:
    given, optimizer = variables(), case.make(nonfinite="raise", **options)
    train(optimizer, given, 2)
    before = contents(optimizer, given)
    grads = spoilt(2, np.nan)
    grads[1][0] = np.inf
    with pytest.raises(ValueError, match="gradient of 'v1', 'v3' must be finite"):
        optimizer.apply(grads, given)
    assert contents(optimizer, given) == before
    assert optimizer.skipped == 0


def test_a_clip_by_value_does_not_hide_infinity() -> None:
    given, optimizer = variables(), fv.optimizers.SGD(clipvalue=0.5, nonfinite="skip")
    before = [v.numpy() for v in given]
    optimizer.apply(spoilt(0, np.inf), given)
    assert_all_same_bits(given, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_finite_numbers_whose_squares_overflow_are_finite(threads: int) -> None:
    fv.set_num_threads(threads)
    w = fv.Variable(np.full(40_000, 1.0), name="w", regularizer=fv.regularizers.L2(0.125))
    optimizer = fv.optimizers.SGD(1e-300, nonfinite="raise")
    gradient = np.full(40_000, 1e-3)
    gradient[7] = 1e300
    optimizer.apply([gradient], [w])
    assert w[7] == pytest.approx(0.0)
    gradient[8] = np.inf
    with pytest.raises(ValueError, match="gradient of 'w' must be finite"):
        optimizer.apply([gradient], [w])


def test_a_float32_gradient_that_overflows_when_unscaled_is_not_finite() -> None:
    w = fv.Variable(np.ones(3, np.float32))
    optimizer = fv.optimizers.SGD(loss_scale_factor=1e-3, nonfinite="skip")
    optimizer.apply([np.full(3, 1e37, np.float32)], [w])
    assert optimizer.skipped == 1


def test_sparse_gradients_are_looked_at_too() -> None:
    table, optimizer = fv.Variable(np.ones((4, 2))), fv.optimizers.Adam(nonfinite="skip")
    optimizer.apply([fv.IndexedSlices([[np.nan, 1.0]], [2])], [table])
    np.testing.assert_array_equal(table, np.ones((4, 2)))


def test_zeroed_gradients_of_a_skipped_step_are_zero() -> None:
    w, optimizer = fv.Variable(np.ones(3)), fv.optimizers.SGD(nonfinite="skip")
    optimizer.build([w])
    w.grad = np.array([1.0, np.nan, 2.0])
    optimizer.step(zero_grad=True)
    assert not w.grad.any()
    np.testing.assert_array_equal(w, np.ones(3))


# The results of a step.


class Odd(fv.Optimizer):
    """A rule in NumPy whose weights overflow, though its gradients are finite."""

    slots = ("seen",)

    def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
        slots.seen += 1
        variable -= hyper.learning_rate * gradient * gradient


MAKERS = {case.id: case.make for case in CASES} | {
    f"torch {name}": functools.partial(getattr(fv.torch, name), **own[-1]) for name, own in OWN.items()
}
MAKERS["in NumPy"] = Odd
SEQUENCES = {  # sizes of a gradient that overflow when squared, added or multiplied
    "float32": [1, 1e25, 1, 3e38, 3e38, -3e38, 1e-42, 1, 1e30],
    "float64": [1, 1e200, 1, 1.7e308, 1.7e308, -1.7e308, 1e-310, 1, 1e250],
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_ema": True, "ema_overwrite_frequency": 2, "loss_scale_factor": 0.5, "clipvalue": 1e37},
    {"adaptive_clipnorm": 1e30},
    {"gradient_accumulation_steps": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
@pytest.mark.parametrize("dtype", SEQUENCES)
@pytest.mark.parametrize("maker", MAKERS)
def test_no_step_leaves_anything_that_is_not_finite(maker: str, dtype: str, options: dict[str, Any]) -> None:
    """A step leaves only finite numbers, or it is skipped or raises, and changes nothing."""
    optimizer, twin = (MAKERS[maker](nonfinite=how, **options) for how in ("skip", "raise"))
    given, twins = variables(dtype), variables(dtype)
    optimizer.build(given)
    twin.build(twins)
    for t, size in enumerate(SEQUENCES[dtype]):
        for v, w, g in zip(given, twins, gradients(t, dtype), strict=True):
            v.grad, w.grad = (np.asarray(np.clip(g, -1, 1) * v.dtype.type(size)) for _ in range(2))
        before, skips = contents(optimizer, given), optimizer.skipped
        optimizer.step(zero_grad=True)
        assert all(np.isfinite(v).all() for v in [*given, *optimizer.variables])
        assert not any(v.grad.any() for v in given)
        if optimizer.skipped == skips:
            twin.step(zero_grad=True)
        else:
            assert contents(optimizer, given) == before
            before = [*contents(twin, twins), *(digest(v.grad) for v in twins)]
            with pytest.raises(ValueError, match=r"(gradient of|what the step makes of) 'v.*' must be finite"):
                twin.step(zero_grad=True)
            assert [*contents(twin, twins), *(digest(v.grad) for v in twins)] == before
        assert contents(twin, twins) == contents(optimizer, given)


@pytest.mark.parametrize("how", ["skip", "raise"])
def test_ftrl_and_adam_skip_what_they_could_not_recover_from(how: str) -> None:
    for make in (fv.optimizers.Ftrl, fv.optimizers.Adam):
        w, optimizer = fv.Variable(np.ones(3, np.float32), name="w"), make(nonfinite=how)
        optimizer.build([w])
        before = contents(optimizer, [w])
        if how == "raise":
            with pytest.raises(ValueError, match=f"{make.__name__}: what the step makes of 'w' must be finite"):
                optimizer.apply([np.float32([1, 1e25, 1])])
        else:
            optimizer.apply([np.float32([1, 1e25, 1])])
        assert contents(optimizer, [w]) == before
        assert optimizer.skipped == (how == "skip")


@pytest.mark.parametrize("how", ["skip", "raise"])
def test_a_constraint_that_projects_to_nan_is_seen(how: str) -> None:
    first, w = (
        fv.Variable([1.0, 2.0], name="first"),
        fv.Variable([1.0, 2.0], name="w", constraint=lambda w: w * np.nan),
    )
    optimizer = fv.optimizers.Adam(nonfinite=how)
    optimizer.build([first, w])
    before = contents(optimizer, [first, w])
    if how == "raise":
        with pytest.raises(ValueError, match="what the step makes of 'w' must be finite"):
            optimizer.apply([[1.0, 1.0]] * 2)
    else:
        optimizer.apply([[1.0, 1.0]] * 2)
    assert contents(optimizer, [first, w]) == before


def test_what_was_not_finite_before_is_not_refused() -> None:
    w, optimizer = fv.Variable([np.inf, 1.0]), fv.optimizers.Adam(0.5, nonfinite="raise")
    optimizer.apply([[1.0, 1.0]], [w])
    assert w[0] == np.inf
    assert w[1] == pytest.approx(0.5, rel=1e-5)


@every_case
@pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_a_guard_does_not_change_what_good_steps_do(case: Case, options: dict[str, Any]) -> None:
    runs = []
    for how in ("ignore", "skip"):
        given, optimizer = variables(), case.make(nonfinite=how, **options)
        train(optimizer, given, 6)
        runs.append(contents(optimizer, given))
    assert runs[0] == runs[1]


@every_case
def test_ignoring_lets_nan_through(case: Case) -> None:
    given, optimizer = variables(), case.make()
    train(optimizer, given, 2)
    optimizer.apply(spoilt(2, np.nan), given)
    assert np.isnan(given[3].value.flat[-1])


# Loss scales.


# Keras reads its own variables in a way that NumPy 2.4 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_loss_scale_follows_keras() -> None:
    import keras

    rng = np.random.default_rng(8)
    start = rng.standard_normal((5, 3)).astype(np.float32)
    ours, theirs = fv.Variable(start, name="w"), keras.Variable(start, name="w")
    options = {"initial_scale": 1024.0, "dynamic_growth_steps": 3}
    scaled = fv.optimizers.LossScaleOptimizer(fv.optimizers.Adam(0.0625), **options)
    peer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.0625), **options)
    peer.build([theirs])
    for t in range(30):
        gradient = (rng.standard_normal((5, 3)) * scaled.dynamic_scale).astype(np.float32)
        if t % 7 == 5:
            gradient[1, 1] = BAD[t % 3]
        scaled.apply([gradient], [ours])
        peer.apply([gradient], [theirs])
        assert scaled.dynamic_scale == float(peer.dynamic_scale.numpy())
        assert scaled.iterations == int(peer.iterations.numpy())
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=2e-5 * np.abs(ours).max())  # see test_keras.py


@every_case
def test_scaled_loss_is_the_same_training(case: Case) -> None:
    scaled, given = variables(), variables()
    wrapped = fv.optimizers.LossScaleOptimizer(case.make(**ALL_OPTIONS | {"loss_scale_factor": None}))
    plain = case.make(**ALL_OPTIONS | {"loss_scale_factor": None})
    for t in range(5):
        wrapped.apply([g * np.float32(wrapped.scale_loss(1.0)) for g in gradients(t)], scaled)
        plain.apply(gradients(t), given)
    assert_all_same_bits(scaled, given)
    assert_all_same_bits(state(wrapped), state(plain))
    assert_same_bits(wrapped.slot(scaled[0], "average").numpy(), plain.slot(given[0], "average").numpy())


def loss_scaled(case: Case) -> fv.Optimizer:
    return fv.optimizers.LossScaleOptimizer(
        case.make(use_ema=True, weight_decay=0.25), initial_scale=64.0, dynamic_growth_steps=3
    )


def train_scaled(optimizer: fv.Optimizer, given: list[fv.Variable], steps: range) -> None:
    for t in steps:
        grads = spoilt(t, np.inf) if t % 5 == 2 else gradients(t)
        optimizer.apply([g * np.float32(optimizer.scale_loss(1.0)) for g in grads], given)


@every_case
@pytest.mark.parametrize("how", ["checkpoint", "pickle", "deepcopy"])
def test_a_loss_scale_goes_on_where_it_was(case: Case, how: str, tmp_path: Path) -> None:
    given, optimizer = variables(), loss_scaled(case)
    optimizer.exclude_from_weight_decay(var_names=["v1"])
    optimizer.build([*given[:2], {"variables": given[2:], "learning_rate": 0.25}])
    train_scaled(optimizer, given, range(8))
    if how == "checkpoint":
        path = fv.Checkpoint(variables=given, optimizer=optimizer).save(tmp_path / "c.h5")
        twins, twin = variables(), loss_scaled(case)
        twin.exclude_from_weight_decay(var_names=["v1"])
        twin.build([*twins[:2], {"variables": twins[2:], "learning_rate": 0.125}])
        with pytest.warns(RuntimeWarning, match=r"groups\[1\]\.learning_rate: 0\.125 here, 0\.25 in the file"):
            fv.Checkpoint(variables=twins, optimizer=twin).restore(path)
    else:
        pair = (given, optimizer)
        twins, twin = pickle.loads(pickle.dumps(pair)) if how == "pickle" else copy.deepcopy(pair)
    assert (twin.dynamic_scale, twin.skipped) == (optimizer.dynamic_scale, optimizer.skipped)
    assert optimizer.skipped == 2
    for o, of in ((optimizer, given), (twin, twins)):
        train_scaled(o, of, range(8, 16))
    assert contents(twin, twins) == contents(optimizer, given)


@every_case
def test_config_of_a_loss_scale_round_trips(case: Case) -> None:
    optimizer = loss_scaled(case)
    twin = type(optimizer).from_config(pickle.loads(pickle.dumps(optimizer.get_config())))
    assert twin.get_config() == optimizer.get_config()
    given, twins = variables(), variables()
    train_scaled(optimizer, given, range(5))
    train_scaled(twin, twins, range(5))
    assert_all_same_bits(given, twins)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"inner_optimizer": "adam"}, "inner_optimizer must be of class Optimizer, got 'adam'"),
        ({}, "missing a required argument: 'inner_optimizer'"),
        ({"inner_optimizer": fv.optimizers.SGD(), "initial_scale": 0}, "initial_scale must be > 0"),
        ({"inner_optimizer": fv.optimizers.SGD(), "clipnorm": 1.0}, "unknown argument 'clipnorm'"),
        (
            {"inner_optimizer": fv.optimizers.LossScaleOptimizer(fv.optimizers.SGD())},
            "must not be a LossScaleOptimizer",
        ),
    ],
)
def test_wrong_arguments_of_a_loss_scale(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"LossScaleOptimizer: .*{error}"):
        fv.optimizers.LossScaleOptimizer(**arguments)


def test_learning_rate_of_a_loss_scale_is_the_inner_one() -> None:
    optimizer = fv.optimizers.LossScaleOptimizer(fv.optimizers.SGD(0.5))
    optimizer.learning_rate = 0.25
    assert optimizer.inner_optimizer.learning_rate == optimizer.learning_rate == 0.25
