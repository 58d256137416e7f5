"""The table of rules and optimizers for all tests: a new rule is a new row of `CASES`."""

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
    rule: str | None  # its name in kernels.RULES, or None for steps in NumPy or a rule of another case
    options: dict[str, Any] = field(default_factory=dict)
    oracle: str = "keras"  # compared with keras (test_keras.py), torch, optax (test_oracles.py) or none

    def make(self, **more: Any) -> fv.Optimizer:
        return getattr(fv.optimizers, self.optimizer)(**{**self.options, **more})

    @property
    def measures(self) -> bool:
        """Whether it sums something before it updates; then gradients must be dense."""
        return any(self.make().pass_of(kind).sums for kind in ("", "matrix"))

    def scalars(self, t: int) -> tuple[float, ...]:
        """Return the scalars of the compiled rule at update `t`."""
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
    Case("nadam", "Nadam", "adam", {"learning_rate": 0.03125}),
    Case(
        "nadam-betas", "Nadam", "adam", {"learning_rate": 0.0625, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-3}
    ),
    Case("adamax", "Adamax", "adamax", {"learning_rate": 0.0625}),
    Case(
        "adamax-betas",
        "Adamax",
        "adamax",
        {"learning_rate": 0.0625, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-2},
    ),
    Case("rmsprop", "RMSprop", "rmsprop", {"learning_rate": 0.03125}),
    Case("rmsprop-rho", "RMSprop", "rmsprop", {"learning_rate": 0.0625, "rho": 0.5, "epsilon": 1e-2}),
    Case("rmsprop-momentum", "RMSprop", "rmsprop_momentum", {"learning_rate": 0.03125, "momentum": 0.75}),
    Case(
        "rmsprop-centered",
        "RMSprop",
        "rmsprop_centered",
        {"learning_rate": 0.03125, "centered": True, "epsilon": 1e-2},
    ),
    Case(
        "rmsprop-centered-momentum",
        "RMSprop",
        "rmsprop_centered",
        {"learning_rate": 0.03125, "centered": True, "momentum": 0.75, "epsilon": 1e-2},
    ),
    Case("adagrad", "Adagrad", "rmsprop", {"learning_rate": 0.25}),
    Case(
        "adagrad-initial",
        "Adagrad",
        "rmsprop",
        {"learning_rate": 0.25, "initial_accumulator_value": 0.0, "epsilon": 1e-2},
    ),
    Case("adadelta", "Adadelta", "adadelta", {"learning_rate": 1.0, "epsilon": 1e-3}),
    Case("adadelta-rho", "Adadelta", "adadelta", {"learning_rate": 0.5, "rho": 0.5, "epsilon": 1e-2}),
    Case(
        "ftrl",
        "Ftrl",
        "ftrl",
        {
            "learning_rate": 0.25,
            "initial_accumulator_value": 0.5,
            "l1_regularization_strength": 0.00390625,
            "l2_regularization_strength": 0.25,
            "l2_shrinkage_regularization_strength": 0.0625,
            "beta": 0.5,
        },
    ),
    Case("ftrl-plain", "Ftrl", "ftrl", {"learning_rate": 0.25}),
    Case(
        "ftrl-power",
        "Ftrl",
        None,
        {
            "learning_rate": 0.25,
            "learning_rate_power": -0.75,
            "l1_regularization_strength": 0.00390625,
            "beta": 0.5,
        },
    ),
    Case("lion", "Lion", "sign_momentum", {"learning_rate": 0.03125}),
    Case("lion-betas", "Lion", "sign_momentum", {"learning_rate": 0.03125, "beta_1": 0.5, "beta_2": 0.75}),
    Case("schedule-free", "ScheduleFreeAdamW", "schedule_free", {"learning_rate": 0.0625}),
    Case(
        "schedule-free-warmup",
        "ScheduleFreeAdamW",
        "schedule_free",
        {
            "learning_rate": 0.125,
            "beta_1": 0.5,
            "beta_2": 0.75,
            "epsilon": 1e-3,
            "warmup_steps": 8,
            "weight_decay": 0.125,
        },
    ),
    Case("radam", "RAdam", "radam", {"learning_rate": 0.0625}, "torch"),
    Case(
        "radam-betas",
        "RAdam",
        "radam",
        {"learning_rate": 0.0625, "beta_1": 0.5, "beta_2": 0.875, "epsilon": 1e-3},
        "torch",
    ),
    Case("radam-decay", "RAdam", "radam", {"learning_rate": 0.0625, "weight_decay": 0.125}, "torch"),
    Case("asgd", "ASGD", "asgd", {"learning_rate": 0.125}, "torch"),
    Case(
        "asgd-averaging",
        "ASGD",
        "asgd",
        {"learning_rate": 0.125, "lambd": 0.25, "alpha": 0.5, "t0": 3.0},
        "torch",
    ),
    Case("rprop", "Rprop", "rprop", {"learning_rate": 0.0625, "step_size_min": 0.0078125}, "torch"),
    Case(
        "rprop-bounds",
        "Rprop",
        "rprop",
        {
            "learning_rate": 0.125,
            "eta_minus": 0.25,
            "eta_plus": 1.5,
            "step_size_min": 0.03125,
            "step_size_max": 0.25,
        },
        "torch",
    ),
    Case("adabelief", "AdaBelief", "adabelief", {"learning_rate": 0.03125}, "optax"),
    Case(
        "adabelief-betas",
        "AdaBelief",
        "adabelief",
        {"learning_rate": 0.0625, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-3, "epsilon_root": 1e-2},
        "optax",
    ),
    Case("yogi", "Yogi", "yogi", {"learning_rate": 0.03125}, "optax"),
    Case(
        "yogi-betas",
        "Yogi",
        "yogi",
        {
            "learning_rate": 0.0625,
            "beta_1": 0.5,
            "beta_2": 0.75,
            "epsilon": 1e-2,
            "initial_accumulator_value": 0.5,
        },
        "optax",
    ),
    Case("ademamix", "AdEMAMix", "ademamix", {"learning_rate": 0.03125}, "optax"),
    Case(
        "ademamix-betas",
        "AdEMAMix",
        "ademamix",
        {
            "learning_rate": 0.0625,
            "beta_1": 0.5,
            "beta_2": 0.75,
            "beta_3": 0.875,
            "alpha": 2.0,
            "epsilon": 1e-3,
            "weight_decay": 0.125,
        },
        "optax",
    ),
    Case("adan", "Adan", "adan", {"learning_rate": 0.03125}, "optax"),
    Case(
        "adan-betas",
        "Adan",
        "adan",
        {
            "learning_rate": 0.0625,
            "beta_1": 0.5,
            "beta_2": 0.75,
            "beta_3": 0.875,
            "epsilon": 1e-3,
            "epsilon_root": 1e-2,
            "weight_decay": 0.125,
        },
        "optax",
    ),
    Case("adopt", "Adopt", "adopt", {"learning_rate": 0.03125}, "optax"),
    Case(
        "adopt-betas",
        "Adopt",
        "adopt",
        {"learning_rate": 0.0625, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.5, "clip_power": 0.125},
        "optax",
    ),
    Case(
        "adopt-unclipped",
        "Adopt",
        "adopt",
        {"learning_rate": 0.03125, "epsilon": 0.125, "clip_power": None},
        "optax",
    ),
    Case("signum", "Signum", "sign_momentum", {"learning_rate": 0.03125}, "optax"),
    Case("signum-momentum", "Signum", "sign_momentum", {"learning_rate": 0.0625, "momentum": 0.5}, "optax"),
]
# These measure before they update.
CASES += [
    Case("lamb", "Lamb", None, {"learning_rate": 0.0625}),
    Case("lamb-betas", "Lamb", None, {"learning_rate": 0.125, "beta_1": 0.5, "beta_2": 0.75, "epsilon": 1e-2}),
    Case("adafactor", "Adafactor", None, {"learning_rate": 0.0625}),
    Case(
        "adafactor-thresholds",
        "Adafactor",
        None,
        {
            "learning_rate": 0.25,
            "beta_2_decay": -0.5,
            "epsilon_1": 1e-2,
            "epsilon_2": 0.5,
            "clip_threshold": 0.5,
            "relative_step": False,
        },
    ),
    Case("muon", "Muon", None, {"learning_rate": 0.03125, "exclude_embeddings": False}),
    Case(
        "muon-settings",
        "Muon",
        None,
        {
            "learning_rate": 0.0625,
            "adam_beta_1": 0.5,
            "adam_beta_2": 0.75,
            "epsilon": 1e-2,
            "adam_weight_decay": 0.125,
            "weight_decay": 0.25,
            "exclude_layers": ["gain", "v3"],
            "exclude_embeddings": False,
            "adam_lr_ratio": 0.5,
            "momentum": 0.75,
            "ns_steps": 3,
            "nesterov": False,
            "rms_rate": None,
            "muon_a": 3.0,
            "muon_b": -3.5,
            "muon_c": 1.5,
        },
    ),
    Case("lars", "Lars", None, {"learning_rate": 0.5, "trust_coefficient": 0.125}, "optax"),
    Case(
        "lars-nesterov",
        "Lars",
        None,
        {
            "learning_rate": 0.25,
            "momentum": 0.5,
            "nesterov": True,
            "trust_coefficient": 0.25,
            "epsilon": 0.125,
        },
        "optax",
    ),
    Case("prodigy", "Prodigy", "prodigy", {"initial_distance": 0.0625}, "optax"),
    Case(
        "prodigy-settings",
        "Prodigy",
        "prodigy",
        {
            "learning_rate": 0.5,
            "beta_1": 0.5,
            "beta_2": 0.75,
            "beta_3": 0.875,
            "epsilon": 1e-3,
            "initial_distance": 0.125,
            "distance_coefficient": 0.5,
        },
        "optax",
    ),
]
IDS = [case.id for case in CASES]
RULE_CASES = {case.rule: case for case in reversed(CASES) if case.rule}  # the first case of every rule


@dataclass(frozen=True)
class Job:
    """The learning rates and numbers of steps with which an optimizer solves the problems of test_minimizes.py."""

    optimizer: str
    quadratic: tuple[float, int]
    rosenbrock: tuple[float, int]
    digits: tuple[float, int]
    options: dict[str, Any] = field(default_factory=dict)
    cosine: bool = False  # the learning rate falls to 0 over the steps
    whole: bool = False  # no minibatches: gradients of the whole data set

    def make(self, rate: float, steps: int) -> fv.Optimizer:
        given: Any = fv.schedules.CosineDecay(rate, steps) if self.cosine else rate
        if self.optimizer == "LBFGS":
            return fv.optimizers.LBFGS(**self.options)
        if self.optimizer == "LossScaleOptimizer":
            return fv.optimizers.LossScaleOptimizer(fv.optimizers.Adam(given), **self.options)
        return getattr(fv.optimizers, self.optimizer)(given, **self.options)


# Good rates from the grid 1, 2, 5, 10, ... Steps of constant size (by sign or by norm) converge only if the rate
# decays. RAdam begins as gradient descent, which leaves Rosenbrock's valley unless it is clipped.
JOBS = [
    Job("AdEMAMix", (0.5, 2000), (0.05, 5000), (0.01, 230), {"beta_3": 0.999, "alpha": 1.0}, cosine=True),
    Job("ASGD", (1.8, 6000), (0.002, 12000), (0.5, 230), {"lambd": 0.0}),
    Job("AdaBelief", (0.05, 2000), (0.02, 5000), (0.02, 230)),
    Job("Adadelta", (10.0, 2000), (1.0, 15000), (2.0, 230), {"epsilon": 1e-6}, cosine=True),
    Job("Adafactor", (0.05, 1000), (0.01, 15000), (0.1, 230), cosine=True),
    Job("Adagrad", (5.0, 2000), (0.5, 12000), (0.2, 230)),
    Job("Adam", (0.05, 2000), (0.02, 5000), (0.02, 230)),
    Job("AdamW", (0.2, 2000), (0.1, 5000), (0.02, 230), {"weight_decay": 1e-4}, cosine=True),
    Job("Adamax", (0.1, 2000), (0.02, 5000), (0.05, 230)),
    Job("Adan", (0.2, 2000), (0.005, 5000), (0.02, 230), cosine=True),
    Job("Adopt", (1.0, 2000), (2.0, 5000), (0.02, 230), cosine=True),
    Job("Ftrl", (5.0, 2000), (0.5, 12000), (0.5, 230)),
    Job("LBFGS", (0, 20), (0, 5), (0, 3), whole=True),
    Job("Lamb", (0.005, 2000), (0.01, 5000), (0.02, 230), cosine=True),
    Job("Lars", (0.5, 2000), (1.0, 8000), (5.0, 230), cosine=True),
    Job("Lion", (0.005, 2000), (0.002, 5000), (0.005, 230), cosine=True),
    Job("LossScaleOptimizer", (0.05, 2000), (0.02, 5000), (0.02, 230), {"dynamic_growth_steps": 100}),
    Job(
        "Muon",
        (0.2, 2000),
        (0.1, 5000),
        (0.02, 230),
        {"weight_decay": 0.0, "adam_weight_decay": 0.0},
        cosine=True,
    ),
    Job("Nadam", (0.1, 2000), (0.01, 8000), (0.02, 230)),
    Job("Prodigy", (1.0, 2000), (1.0, 5000), (1.0, 230), cosine=True),
    Job("RAdam", (0.5, 2000), (0.05, 5000), (0.05, 230), {"global_clipnorm": 1.0}, cosine=True),
    Job("RMSprop", (0.2, 2000), (0.002, 10000), (0.01, 230), cosine=True),
    Job("Rprop", (0.1, 500), (0.001, 5000), (0.001, 60), whole=True),
    Job("SGD", (1.8, 6000), (0.002, 12000), (0.5, 230)),
    Job("SGD", (0.5, 2000), (0.001, 5000), (0.1, 230), {"momentum": 0.9, "nesterov": True}),
    Job("ScheduleFreeAdamW", (0.2, 2000), (0.005, 20000), (0.05, 230), {"beta_1": 0.98}),
    Job("Signum", (0.005, 2000), (0.002, 5000), (0.005, 230), cosine=True),
    Job("Yogi", (0.2, 2000), (0.2, 5000), (0.02, 230)),
]


def bits(array: Any) -> Any:
    """Return the bit patterns of `array`, with one pattern for all NaNs."""
    array = np.array(array)
    array[np.isnan(array)] = np.nan
    return array.view(f"u{array.itemsize}")


def assert_same_bits(actual: Any, expected: Any, message: str = "") -> None:
    assert np.shape(actual) == np.shape(expected), message
    if actual.tobytes() == expected.tobytes():  # quick, and sufficient unless payloads of NaNs differ
        return
    np.testing.assert_array_equal(bits(actual), bits(expected), err_msg=message)


def contents(optimizer: fv.Optimizer, variables: Any) -> list[str]:
    """Return digests of all that a step can change: weights, slots, averages, accumulators, numbers, counter.

    With the bytes themselves, pytest would take hours to show a difference.
    """
    arrays = [*variables, *optimizer._state.variables, *optimizer.variables]
    digests = [f"{i} {v.name} {digest(v.value)}" for i, v in enumerate(arrays)]
    numbers = {name: value.tolist() for name, value in optimizer._state.numbers.items() if name != "skipped"}
    return [*digests, f"steps {optimizer._steps}", f"numbers {numbers}"]


def digest(array: Any) -> str:
    return hashlib.sha256(bits(array).tobytes()).hexdigest()[:16]
