"""Every option means what it means in Keras: compare 20 steps with the installed Keras (NumPy backend).

Keras computes in float32 on this backend, also for float64 variables. 20 steps of a contracting recurrence round
some 120 operations by half a unit in the last place (6e-8) each, and Adam's quotient can double that. The
tolerance of 2e-5 of the largest weight is a little more. (The numbers of the cases are such that no rule divides
by a small difference, as in RMSprop's variance and Adadelta's first steps.) Every option changes the result by
more than 1e-3 (`test_every_option_matters`), and so does a wrong order of the stages.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import CASES, Case

# Keras reads its own variables in a way that NumPy 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KERAS_CASES = [case for case in CASES if case.oracle == "keras"]
FIRST = {(case.optimizer, case.rule): case for case in reversed(KERAS_CASES)}.values()  # these with every option
FEW = ("plain", "missing", "accumulation", "many")  # the others, whose numbers differ, with these
SHAPES = {"embedding/kernel": (7, 5), "embedding/bias": (5,), "norm/gain": (3, 2, 4), "temperature": ()}
STEPS = 20


@dataclass(frozen=True)
class Option:
    """Options of an optimizer, and other settings of a run."""

    id: str
    options: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] | None = None  # of CosineDecay
    missing: bool = False  # None gradients now and then
    constraint: Callable[[Any], Any] | None = None  # called with the constraints module of each library
    regularizer: tuple[float, float] | None = None  # l1, l2
    exclude: Callable[[Any], dict[str, Any]] | None = None  # from the variables to the arguments
    finalize: bool = False
    feasible: bool = False  # start within the constraint: penalties count once per update, not per call


COSINE = {"initial_learning_rate": 0.0625, "decay_steps": 15, "alpha": 0.25}
WARMUP = {**COSINE, "initial_learning_rate": 0.0, "warmup_target": 0.0625, "warmup_steps": 6}
EMA = {"use_ema": True, "ema_momentum": 0.75}
OPTIONS = [
    Option("plain"),
    Option("weight_decay", {"weight_decay": 0.25}),
    Option("no-weight_decay", {"weight_decay": None}),
    Option("exclude-names", {"weight_decay": 0.25}, exclude=lambda v: {"var_names": ["bias", "gain"]}),
    Option("exclude-list", {"weight_decay": 0.25}, exclude=lambda v: {"var_list": [v[0], v[2]]}),
    Option("clipnorm", {"clipnorm": 0.75}),
    Option("clipnorm-idle", {"clipnorm": 1e6}),
    Option("clipvalue", {"clipvalue": 0.25}),
    Option("global_clipnorm", {"global_clipnorm": 1.5}),
    Option("global_clipnorm-missing", {"global_clipnorm": 1.5}, missing=True),
    Option("ema", EMA, finalize=True),
    Option("ema-overwrite", {**EMA, "ema_overwrite_frequency": 3}),
    Option("ema-overwrite-missing", {**EMA, "ema_overwrite_frequency": 2}, missing=True, finalize=True),
    Option("accumulation", {"gradient_accumulation_steps": 4}),
    Option("accumulation-ema", {**EMA, "gradient_accumulation_steps": 3, "ema_overwrite_frequency": 2}),
    Option("accumulation-clip", {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5, "weight_decay": 0.5}),
    Option("accumulation-schedule", {"gradient_accumulation_steps": 3}, WARMUP),
    Option("loss_scale", {"loss_scale_factor": 1024.0}),
    Option("loss_scale-clip", {"loss_scale_factor": 3.0, "clipvalue": 0.125}),
    Option("loss_scale-accumulation", {"loss_scale_factor": 3.0, "gradient_accumulation_steps": 3}),
    Option("cosine", {}, COSINE),
    Option("cosine-warmup", {}, WARMUP),
    Option("cosine-decay", {"weight_decay": 0.25}, WARMUP),
    Option("missing", missing=True),
    Option("missing-decay", {"weight_decay": 0.25}, missing=True),
    Option("nonneg", constraint=lambda c: c.NonNeg()),
    Option("nonneg-ema", {**EMA, "ema_overwrite_frequency": 2}, constraint=lambda c: c.NonNeg(), missing=True),
    Option("nonneg-accumulation", {"gradient_accumulation_steps": 2}, constraint=lambda c: c.NonNeg()),
    Option("maxnorm", constraint=lambda c: c.MaxNorm(0.75)),
    Option("maxnorm-missing", constraint=lambda c: c.MaxNorm(0.5), missing=True),
    Option("maxnorm-accumulation", {"gradient_accumulation_steps": 3}, constraint=lambda c: c.MaxNorm(0.5)),
    Option("unitnorm", constraint=lambda c: c.UnitNorm()),
    Option("minmaxnorm", constraint=lambda c: c.MinMaxNorm(0.5, 0.75, rate=0.5)),
    Option("l1", regularizer=(0.0625, 0.0)),
    Option("l2", regularizer=(0.0, 0.125)),
    Option("l1l2", regularizer=(0.0625, 0.125)),
    Option("l1l2-clip", {"global_clipnorm": 0.75, "loss_scale_factor": 4.0}, regularizer=(0.0625, 0.125)),
    Option(
        "many",
        {
            **EMA,
            "weight_decay": 0.25,
            "clipnorm": 0.75,
            "loss_scale_factor": 7.0,
            "ema_overwrite_frequency": 4,
        },
        WARMUP,
        missing=True,
        constraint=lambda c: c.MaxNorm(0.75),
        regularizer=(0.0625, 0.125),
        exclude=lambda v: {"var_names": ["bias"]},
        finalize=True,
    ),
    Option(
        "many-accumulated",
        {**EMA, "weight_decay": 0.25, "global_clipnorm": 0.75, "gradient_accumulation_steps": 3},
        COSINE,
        constraint=lambda c: c.NonNeg(),
        regularizer=(0.0625, 0.125),
        finalize=True,
        feasible=True,
    ),
]


def initial_values(feasible: bool = False) -> list[Any]:
    rng = np.random.default_rng(5)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]
    return [np.abs(v) for v in values] if feasible else values


def gradients(option: Option, dtype: str) -> list[list[Any]]:
    rng = np.random.default_rng(6)
    steps = [[rng.standard_normal(shape).astype(dtype) for shape in SHAPES.values()] for _ in range(STEPS)]
    if option.missing:
        for t, grads in enumerate(steps):
            grads[t % 3] = None
    return steps


def constrained(option: Option, library: Any, shape: tuple[int, ...]) -> Any:
    """Return the constraint for a variable; only NonNeg needs no axis."""
    make = option.constraint
    return make(library.constraints) if make and (shape or "nonneg" in option.id or "many-" in option.id) else None


def run_keras(case: Case, option: Option) -> list[Any]:
    variables = [
        keras.Variable(value, name=name.replace("/", "_"))
        for name, value in zip(SHAPES, initial_values(option.feasible), strict=True)
    ]
    for v in variables:
        v.constraint = constrained(option, keras, tuple(v.shape))
    optimizer = getattr(keras.optimizers, case.optimizer)(**configured(case, option, keras.optimizers.schedules))
    if option.exclude:
        optimizer.exclude_from_weight_decay(**option.exclude(variables))
    optimizer.build(variables)
    scale = option.options.get("loss_scale_factor", 1)
    for grads in gradients(option, "float32"):
        if option.regularizer:
            grads = [penalized(g, v.numpy(), scale, *option.regularizer) for g, v in zip(grads, variables)]  # noqa: B905, PLW2901
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of None gradients
            optimizer.apply(grads, variables)
    if option.finalize:
        optimizer.finalize_variable_values(variables)

    return [v.numpy() for v in variables]


def penalized(g: Any, w: Any, scale: float, l1: float, l2: float) -> Any:
    """Add the gradient of the penalty by hand, scaled like the loss."""
    return None if g is None else (g + scale * (l1 * np.sign(w) + 2 * l2 * w)).astype(g.dtype)


def configured(case: Case, option: Option, schedules: Any) -> dict[str, Any]:
    schedule = option.schedule
    if schedule and case.optimizer == "Ftrl":  # which divides by the learning rate
        schedule = {**schedule, "initial_learning_rate": schedule["initial_learning_rate"] or 0.015625}
    rate = {} if schedule is None else {"learning_rate": schedules.CosineDecay(**schedule)}
    return {**case.options, **option.options, **rate}


def run_fastvar(case: Case, option: Option, dtype: str) -> list[Any]:
    regularizer = fv.regularizers.L1L2(*option.regularizer) if option.regularizer else None
    variables = [
        fv.Variable(
            value,
            dtype=dtype,
            name=name,
            regularizer=regularizer,
            constraint=constrained(option, fv, value.shape),
        )
        for name, value in zip(SHAPES, initial_values(option.feasible), strict=True)
    ]
    optimizer = getattr(fv.optimizers, case.optimizer)(**configured(case, option, fv.schedules))
    if option.exclude:
        optimizer.exclude_from_weight_decay(**option.exclude(variables))
    optimizer.build(variables)
    for grads in gradients(option, dtype):
        optimizer.apply(grads, variables)
    if option.finalize:
        optimizer.finalize_variable_values(variables)
    assert optimizer.iterations == STEPS // (optimizer.gradient_accumulation_steps or 1)
    return [v.numpy() for v in variables]


def assert_close(actual: list[Any], expected: list[Any]) -> None:
    for name, a, e in zip(SHAPES, actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=2e-5 * max(np.abs(e).max(), 1), err_msg=name)


PAIRS = [(case, option) for case in KERAS_CASES for option in OPTIONS if case in FIRST or option.id in FEW]


@pytest.mark.parametrize(("case", "option"), PAIRS, ids=[f"{case.id}-{option.id}" for case, option in PAIRS])
def test_follows_keras(case: Case, option: Option) -> None:
    if case.optimizer == "AdamW" and option.id == "no-weight_decay":
        pytest.skip("refused by Keras and here")
    expected = run_keras(case, option)
    assert_close(run_fastvar(case, option, "float32"), expected)
    assert_close(run_fastvar(case, option, "float64"), expected)


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case.id)
def test_every_option_matters(case: Case) -> None:
    """Each option changes the result by far more than the tolerance: else the comparison would prove nothing."""
    plain = run_fastvar(case, OPTIONS[0], "float64")
    for option in OPTIONS[1:]:
        if case.optimizer == "AdamW" and option.id == "no-weight_decay":
            continue
        idle = option.id in ("clipnorm-idle", "no-weight_decay", "loss_scale")
        changed = max(
            np.abs(a - p).max() for a, p in zip(run_fastvar(case, option, "float64"), plain, strict=True)
        )
        assert idle or changed > 1e-3, option.id


@pytest.mark.parametrize("name", sorted({case.optimizer for case in KERAS_CASES}))
def test_defaults_are_keras_defaults(name: str) -> None:
    ours = getattr(fv.optimizers, name)().get_config()
    theirs = getattr(keras.optimizers, name)().get_config()
    for option, value in theirs.items():
        if option != "name":
            assert ours[option] == pytest.approx(value), option


@pytest.mark.parametrize("arguments", [COSINE, WARMUP, {**COSINE, "alpha": 0.0}])
def test_cosine_decay_follows_keras(arguments: dict[str, Any]) -> None:
    ours = fv.schedules.CosineDecay(**arguments)
    theirs = keras.optimizers.schedules.CosineDecay(**arguments)
    for step in range(40):
        assert ours(step) == pytest.approx(float(theirs(step)), abs=1e-7)


@pytest.mark.parametrize("name", ["NonNeg", "MaxNorm", "UnitNorm", "MinMaxNorm"])
@pytest.mark.parametrize("axis", [0, 1, (0, 1)])
def test_constraints_follow_keras(name: str, axis: Any) -> None:
    options = {} if name == "NonNeg" else {"axis": axis}
    w = initial_values()[0]
    ours, theirs = (getattr(c, name)(**options) for c in (fv.constraints, keras.constraints))
    np.testing.assert_allclose(ours(w), np.array(theirs(w)), rtol=1e-6)
    assert ours(w).dtype == np.float32


@pytest.mark.parametrize("name", ["L1", "L2", "L1L2"])
def test_regularizers_follow_keras(name: str) -> None:
    w = initial_values()[0]
    options = {"l1": 0.25, "l2": 0.5} if name == "L1L2" else {name.lower(): 0.25}
    ours, theirs = (getattr(r, name)(**options) for r in (fv.regularizers, keras.regularizers))
    assert ours(w) == pytest.approx(float(theirs(w)), rel=1e-5)
