"""Slots and averages that start as copies of the weights copy those of the first step."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.kernels import reference
from tests.support.cases import assert_same_bits, contents

OPTIMIZERS: dict[str, Callable[[], fv.Optimizer]] = {
    "ScheduleFreeAdamW": lambda: fv.optimizers.ScheduleFreeAdamW(0.125),
    "Prodigy": lambda: fv.optimizers.Prodigy(initial_distance=0.125),
    "average": lambda: fv.optimizers.SGD(0.125, use_ema=True, ema_momentum=0.5),
    "accumulating": lambda: fv.optimizers.ScheduleFreeAdamW(0.125, gradient_accumulation_steps=2),
    "scaled": lambda: fv.optimizers.LossScaleOptimizer(fv.optimizers.ScheduleFreeAdamW(0.125), initial_scale=1.0),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
OLD, NEW = ([1.0, 2.0], [3.0]), ([-5.0, 7.0], [11.0])


def variables(values: tuple[list[float], list[float]]) -> list[fv.Variable]:
    return [fv.Variable(value, name=f"v{i}") for i, value in enumerate(values)]


def train(optimizer: fv.Optimizer, start: int = 0, steps: int = 4) -> None:
    for t in range(start, start + steps):
        optimizer.apply([[0.5 + t, -1.0], [0.25 * t - 1]])


def expected(make: Callable[[], fv.Optimizer]) -> list[str]:
    """Return the result of an optimizer that was built after the weights were set."""
    given, optimizer = variables(NEW), make()
    optimizer.build(given)
    train(optimizer)
    return contents(optimizer, given)


def by_assigning(given: list[fv.Variable], optimizer: fv.Optimizer, folder: Path) -> Any:
    for v, value in zip(given, NEW, strict=True):
        v.assign(value)
    return given, optimizer


def by_restoring_the_weights(given: list[fv.Variable], optimizer: fv.Optimizer, folder: Path) -> Any:
    path = fv.Checkpoint(variables(NEW)).save(folder / "weights.h5")
    fv.Checkpoint(given).restore(path)
    return given, optimizer


def by_importing(given: list[fv.Variable], optimizer: fv.Optimizer, folder: Path) -> Any:
    np.savez(folder / "weights.npz", **{f"v{i}": value for i, value in enumerate(NEW)})
    fv.Checkpoint(given).import_weights(folder / "weights.npz")
    return given, optimizer


def by_restoring_all_then_assigning(given: list[fv.Variable], optimizer: fv.Optimizer, folder: Path) -> Any:
    path = fv.Checkpoint(given, optimizer=optimizer).save(folder / "all.h5")
    twins = variables(OLD)
    twin = type(optimizer).from_config(optimizer.get_config())
    fv.Checkpoint(twins, optimizer=twin).restore(path)  # which builds it
    return by_assigning(twins, twin, folder)


def by_pickling_then_assigning(given: list[fv.Variable], optimizer: fv.Optimizer, folder: Path) -> Any:
    return by_assigning(*pickle.loads(pickle.dumps((given, optimizer))), folder)


@every_optimizer
@pytest.mark.parametrize(
    "load",
    [
        by_assigning,
        by_restoring_the_weights,
        by_importing,
        by_restoring_all_then_assigning,
        by_pickling_then_assigning,
    ],
)
def test_weights_loaded_after_build_are_where_it_begins(make: Any, load: Any, tmp_path: Path) -> None:
    given, optimizer = variables(OLD), make()
    optimizer.build(given)
    given, optimizer = load(given, optimizer, tmp_path)
    train(optimizer)
    assert contents(optimizer, given) == expected(make)


@every_optimizer
@pytest.mark.parametrize("how", ["pickle", "checkpoint"])
def test_what_has_begun_has_begun_after_a_round_trip(make: Any, how: str, tmp_path: Path) -> None:
    given, optimizer = variables(NEW), make()
    optimizer.build(given)
    train(optimizer, 0, 1)
    if how == "pickle":
        given, optimizer = pickle.loads(pickle.dumps((given, optimizer)))
    else:
        path = fv.Checkpoint(given, optimizer=optimizer).save(tmp_path / "x.h5")
        given, optimizer = variables(OLD), make()
        fv.Checkpoint(given, optimizer=optimizer).restore(path)
    train(optimizer, 1, 3)
    assert contents(optimizer, given) == expected(make)


def test_a_variable_begins_with_its_own_first_gradient() -> None:
    """Compute the first update of ScheduleFree in NumPy, from the present weights."""
    v, w = fv.Variable([1.0]), fv.Variable([1.0])
    optimizer = fv.optimizers.ScheduleFreeAdamW(0.125)
    v.trainable = False
    optimizer.build([v, w])
    for _ in range(3):
        optimizer.apply([[1.0], [1.0]])
    v.assign([100.0])  # frozen before
    v.trainable = True
    for _ in range(2):
        optimizer.apply([[1.0], None])
    weights, z, velocity = np.array([100.0]), np.array([100.0]), np.zeros(1)
    for t in (4, 5):
        scalars = [np.float64(c) for c in optimizer.scalars(fv.optimizers.ScheduleFreeAdamW(0.125), t)]
        reference.RULES["schedule_free"].apply(weights, np.ones(1), [z, velocity], scalars)
    assert_same_bits(v.numpy(), weights)
    assert abs(v[0] - 100) < 1


def test_finalizing_after_loading_keeps_what_was_loaded() -> None:
    w, optimizer = fv.Variable([1.0]), fv.optimizers.SGD(use_ema=True)
    optimizer.build([w])
    w.assign([5.0])
    optimizer.finalize_variable_values()
    assert w[0] == 5.0


@every_optimizer
def test_a_failed_first_step_begins_nothing(make: Any) -> None:
    def fails(w: Any) -> Any:
        raise ArithmeticError("too bad")

    given, optimizer = variables(OLD), make()
    optimizer.build(given)
    by_assigning(given, optimizer, Path())
    given[1].constraint = fails
    before = contents(optimizer, given)
    with pytest.raises(ArithmeticError):
        train(optimizer)
    assert contents(optimizer, given) == before
    given[1].constraint = None
    train(optimizer)
    assert contents(optimizer, given) == expected(make)


def test_once_all_have_begun_a_step_is_plain_again() -> None:
    given, optimizer = variables(OLD), fv.optimizers.ScheduleFreeAdamW(0.125)
    optimizer.build(given)
    train(optimizer, 0, 2)
    assert optimizer._plan is not None
    assert optimizer._plan.plain
