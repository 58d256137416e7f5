"""Accumulation counts calls and updates as Keras does, and loses no gradient.

Keras loses the gradients of a window if the last one is None. So it gets zeros in place of None wherever the
variable has another gradient in the window: the sums are the same.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import assert_same_bits, contents

# Keras reads its own variables in a way that NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPES = [(3, 2), (4,), ()]
WINDOW, CALLS = 3, 12
OPTIMIZERS = {
    "SGD": {"learning_rate": 0.125, "momentum": 0.5},
    "Adam": {"learning_rate": 0.0625, "beta_2": 0.75, "epsilon": 1e-2},
    "ScheduleFreeAdamW": {"learning_rate": 0.0625, "epsilon": 1e-2},
    "Lamb": {"learning_rate": 0.0625, "epsilon": 1e-2},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.5},
    "clip": {"clipnorm": 0.25},
    "ema": {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 2},
    "scale": {"loss_scale_factor": 4.0, "global_clipnorm": 0.5},
}


def initial_values() -> list[Any]:
    rng = np.random.default_rng(5)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def calls() -> list[list[Any]]:
    """Return gradients with many Nones: the last of a window, the first, all of a variable, and others."""
    rng = np.random.default_rng(6)
    grads: list[list[Any]] = [[rng.standard_normal(s).astype(np.float32) for s in SHAPES] for _ in range(CALLS)]
    for call, missing in {
        0: [1],
        2: [0, 2],
        3: [0],
        4: [0],
        5: [0],
        6: [1, 2],
        8: [1],
        10: [2],
        11: [0, 1],
    }.items():
        for i in missing:
            grads[call][i] = None
    return grads


def whole(grads: list[list[Any]]) -> list[list[Any]]:
    """Return the gradients with zeros for None, unless a variable has none in the whole window."""
    for start in range(0, CALLS, WINDOW):
        window = grads[start : start + WINDOW]
        for i, shape in enumerate(SHAPES):
            if any(g[i] is not None for g in window):
                for g in window:
                    g[i] = np.zeros(shape, np.float32) if g[i] is None else g[i]
    return grads


def run_keras(name: str, options: dict[str, Any]) -> list[Any]:
    variables = [keras.Variable(value) for value in initial_values()]
    optimizer = getattr(keras.optimizers, name)(**OPTIMIZERS[name], **options, gradient_accumulation_steps=WINDOW)
    optimizer.build(variables)
    for grads in whole(calls()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of None gradients
            optimizer.apply(grads, variables)
    return [v.numpy() for v in variables]


def made(name: str, options: dict[str, Any]) -> tuple[fv.Optimizer, list[fv.Variable]]:
    variables = [fv.Variable(value, name=f"v{i}") for i, value in enumerate(initial_values())]
    optimizer = getattr(fv.optimizers, name)(**OPTIMIZERS[name], **options, gradient_accumulation_steps=WINDOW)
    optimizer.build(variables)
    return optimizer, variables


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_sums_are_kept_whatever_is_missing_at_the_end(name: str, options: dict[str, Any]) -> None:
    optimizer, variables = made(name, options)
    for grads in calls():
        optimizer.apply(grads)
    for v, expected in zip(variables, run_keras(name, options), strict=True):
        np.testing.assert_allclose(v, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_variable_without_any_gradient_is_left_alone(name: str) -> None:
    optimizer, variables = made(name, {"weight_decay": 0.5})
    before = contents(optimizer, [variables[0]])
    for grads in calls()[3:6]:
        optimizer.apply(grads)
    others = [line for line in contents(optimizer, [variables[0]]) if line[:2] == "0 "]
    assert others == before[:1]
    for slot in optimizer.slots:
        fresh, its = made(name, {"weight_decay": 0.5})
        assert_same_bits(optimizer.slot(variables[0], slot).numpy(), fresh.slot(its[0], slot).numpy())


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "checkpoint", "other order"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("at", [1, 2, 7])
def test_a_window_goes_on_after_a_round_trip(how: str, name: str, at: int, tmp_path: Path) -> None:
    optimizer, variables = made(name, OPTIONS["ema"])
    for grads in calls()[:at]:
        optimizer.apply(grads)
    if how == "pickle":
        twin, its = pickle.loads(pickle.dumps((optimizer, variables)))
    elif how == "deepcopy":
        twin, its = copy.deepcopy((optimizer, variables))
    else:
        twin, its = made(name, OPTIONS["ema"])
        if how == "other order":  # within a group: tensors and marks are matched by name
            twin = type(twin).from_config(twin.get_config())
            twin.build(its[::-1])
        path = fv.Checkpoint(variables, optimizer=optimizer).save(tmp_path / "x.h5")
        fv.Checkpoint(its, optimizer=twin).restore(path)
    for grads in calls()[at:]:
        optimizer.apply(grads, variables)
        twin.apply(grads, its)
    for v, w in zip(variables, its, strict=True):
        assert_same_bits(v.numpy(), w.numpy())


def test_a_variable_frozen_at_the_update_keeps_its_value_and_forgets() -> None:
    v, w = fv.Variable([1.0]), fv.Variable([1.0])
    optimizer = fv.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.apply([[2.0], [2.0]], [v, w])
    v.trainable = False
    optimizer.apply([[2.0], [2.0]])
    v.trainable = True
    for _ in range(2):
        optimizer.apply([[1.0], [1.0]])
    assert (v[0], w[0]) == (0.0, -2.0)


def test_a_constraint_holds_for_what_is_updated_without_a_last_gradient() -> None:
    v, w = fv.Variable([1.0, 1.0], constraint=fv.constraints.UnitNorm()), fv.Variable([1.0])
    optimizer = fv.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    optimizer.apply([[1.0, -7.0], [1.0]], [v, w])
    optimizer.apply([None, [1.0]])
    np.testing.assert_allclose(np.sqrt((v**2).sum()), 1)


def test_schedules_count_calls_as_in_keras() -> None:
    def rate(step: Any) -> float:
        return 0.5 / (1 + int(step))

    class Rate(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> float:
            return rate(step)

    theirs = keras.optimizers.SGD(Rate(), gradient_accumulation_steps=2)
    ours = fv.optimizers.SGD(rate, gradient_accumulation_steps=2)
    v, w = keras.Variable(np.ones(1, np.float32)), fv.Variable([1.0])
    theirs.build([v])
    ours.build([w])
    for _ in range(5):
        theirs.apply([np.ones(1, np.float32)], [v])
        ours.apply([[1.0]])
    assert w[0] == 1 - rate(1) - rate(3) == v.numpy()[0]
    assert int(theirs.iterations) == ours.iterations == 2


def test_averages_move_at_every_call_as_in_keras() -> None:
    options = {"use_ema": True, "ema_momentum": 0.5, "gradient_accumulation_steps": 2}
    theirs, ours = keras.optimizers.SGD(1.0, **options), fv.optimizers.SGD(1.0, **options)
    v, w = keras.Variable(np.full(1, 8, np.float32)), fv.Variable([8.0])
    theirs.build([v])
    ours.build([w])
    for _ in range(7):
        theirs.apply([np.ones(1, np.float32)], [v])
        ours.apply([[1.0]])
        theirs_average = theirs._model_variables_moving_average[0].numpy()
        np.testing.assert_allclose(ours.slot(w, "average"), theirs_average)


def test_a_skipped_call_counts_nowhere_as_in_keras() -> None:
    theirs = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.5, gradient_accumulation_steps=2), initial_scale=1.0
    )
    ours = fv.optimizers.SGD(0.5, gradient_accumulation_steps=2, nonfinite="skip")
    v, w = keras.Variable(np.full(1, 8, np.float32)), fv.Variable([8.0])
    theirs.build([v])
    ours.build([w])
    for g in (1.0, np.inf, 3.0, np.inf, np.inf, 5.0, 7.0):
        scale = float(theirs.dynamic_scale.numpy())
        theirs.apply([np.full(1, g * scale, np.float32)], [v])
        ours.apply([[g]])
        np.testing.assert_allclose(w, v.numpy())
    assert (ours.iterations, ours.skipped, w[0]) == (2, 3, 4.0)


def test_a_failed_call_leaves_the_window_as_it_was() -> None:
    class Fails(fv.Optimizer):
        failing = False

        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            variable -= gradient
            if self.failing:
                raise ArithmeticError

    v, w, optimizer = fv.Variable([8.0]), fv.Variable([8.0]), Fails(gradient_accumulation_steps=2)
    optimizer.apply([[2.0], None], [v, w])
    optimizer.failing = True
    before = contents(optimizer, [v, w])
    with pytest.raises(ArithmeticError):
        optimizer.apply([None, [4.0]])
    assert contents(optimizer, [v, w]) == before
    optimizer.failing = False
    optimizer.apply([None, [4.0]])
    assert (v[0], w[0]) == (7.0, 6.0)
