"""The one table of rules and optimizers that all tests share: a new rule is one new row of `CASES`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

import fastvar as fv


@dataclass(frozen=True)
class Case:
    """An optimizer class with options that select a compiled rule."""

    id: str
    optimizer: str  # its name in fastvar.optimizers, and in keras.optimizers
    rule: str  # its name in kernels.RULES
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, **more: Any) -> fv.Optimizer:
        return getattr(fv.optimizers, self.optimizer)(**{**self.options, **more})

    def scalars(self, t: int) -> tuple[float, ...]:
        """What the compiled rule takes at update `t`."""
        optimizer = self.make()
        return optimizer.scalars(SimpleNamespace(**optimizer._parameters, slots=optimizer.slots), t)


# Learning rates are powers of two: the same number in float32 and float64.
CASES = [
    Case("sgd", "SGD", "gradient_descent", {"learning_rate": 0.125}),
    Case("momentum", "SGD", "momentum", {"learning_rate": 0.0625, "momentum": 0.9}),
    Case("nesterov", "SGD", "momentum", {"learning_rate": 0.0625, "momentum": 0.9, "nesterov": True}),
    Case("adam", "Adam", "adam", {"learning_rate": 0.03125}),
    Case(
        "adam-betas",
        "Adam",
        "adam",
        {"learning_rate": 0.0625, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-3},
    ),
    Case("amsgrad", "Adam", "amsgrad", {"learning_rate": 0.03125, "beta_2": 0.75, "amsgrad": True}),
    Case("adamw", "AdamW", "adam", {"learning_rate": 0.03125, "weight_decay": 0.125}),
    Case(
        "adamw-amsgrad",
        "AdamW",
        "amsgrad",
        {"learning_rate": 0.03125, "weight_decay": 0.125, "amsgrad": True},
    ),
]
IDS = [case.id for case in CASES]
RULE_CASES = {case.rule: case for case in reversed(CASES)}  # the first case of every rule


def bits(array: Any) -> Any:
    """Return the bit patterns of `array`, all NaNs as one."""
    array = np.array(array)
    array[np.isnan(array)] = np.nan
    return array.view(f"u{array.itemsize}")


def assert_same_bits(actual: Any, expected: Any, message: str = "") -> None:
    assert np.shape(actual) == np.shape(expected), message
    if actual.tobytes() == expected.tobytes():  # quick, and true unless NaNs differ in what they carry
        return
    np.testing.assert_array_equal(bits(actual), bits(expected), err_msg=message)


def contents(optimizer: fv.Optimizer, variables: Any) -> list[str]:
    """Digests of every byte that a step may change: weights, slots, averages, accumulators, the counter.

    Digests, as pytest would spend hours on the difference of the bytes.
    """
    arrays = [*variables, *optimizer._variables, *optimizer.variables]
    digests = [f"{i} {v.name} {digest(v.value)}" for i, v in enumerate(arrays)]
    return [*digests, f"steps {optimizer._steps}"]


def digest(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]
