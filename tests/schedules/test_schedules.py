"""Compare schedules with the library that their names come from, and check what all of them promise.

Oracles, in this order: Keras if it has the schedule, else optax, and PyTorch if it is installed.

Keras and optax compute in float32. There a step, a rate and each of a few operations have a relative error of
6e-8; a power of t/T multiplies the error of its base by the exponent, and 1 + cos x has an error of 6e-8 of its
largest value. So the bound is 1e-6 of the largest value. A step too early or too late is more than 1e-4 of it
(`test_a_step_too_early_is_seen`). PyTorch computes in double precision, but the position in a cycle is a
difference: 1e-13.
"""

from __future__ import annotations

import inspect
import json
import math
import pickle
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastvar import schedules as s
from fastvar.schedules.notation import parse
from tests.support.schedule_cases import EVERY, IN_KERAS, IN_OPTAX, IN_TORCH, Row

FLOAT32, DOUBLE = 1e-6, 1e-13  # bounds, relative to the largest value
every = pytest.mark.parametrize("row", EVERY, ids=lambda row: row.id)


def assert_follows(actual: list[float], expected: list[float], bound: float) -> None:
    largest = max(map(abs, expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound * largest)


def test_every_schedule_has_a_row() -> None:
    assert {row.name for row in EVERY} == {*s.__all__} - {"LearningRateSchedule"}
    assert {row.name for row in IN_KERAS} == {
        name for name in dir(keras.optimizers.schedules) if name[0].isupper() and name != "LearningRateSchedule"
    }


# Against Keras.


@pytest.mark.parametrize("row", IN_KERAS, ids=lambda row: row.id)
def test_follows_keras(row: Row) -> None:
    ours, theirs = row.make(), getattr(keras.optimizers.schedules, row.name)(**row.arguments)
    assert_follows([ours(t) for t in row.steps], [float(theirs(t)) for t in row.steps], FLOAT32)


@pytest.mark.parametrize("row", IN_KERAS, ids=lambda row: row.id)
def test_arguments_and_configurations_are_those_of_keras(row: Row) -> None:
    ours, theirs = row.make(), getattr(keras.optimizers.schedules, row.name)
    wanted = {k: p.default for k, p in inspect.signature(theirs).parameters.items()}
    assert {k: p.default for k, p in inspect.signature(type(ours)).parameters.items()} == wanted
    assert list(inspect.signature(type(ours)).parameters) == list(wanted)
    assert theirs(*ours.get_config().values()).get_config() == theirs.from_config(ours.get_config()).get_config()
    assert type(ours).from_config(theirs(**row.arguments).get_config()).get_config() == ours.get_config()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 3, "factor": 0.5},
        {"patience": 0, "factor": 0.5, "min_delta": 0.0},
        {"patience": 1, "factor": 0.75, "cooldown": 3},
        {"patience": 2, "factor": 0.5, "min_lr": 0.125, "cooldown": 1},
        {"patience": 2, "factor": 0.0, "min_lr": 0.1},
        {"patience": 2, "factor": 0.5, "min_delta": 0.25, "cooldown": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_follows_keras(options: dict[str, Any], mode: str) -> None:
    """Here the oracle's rate is a Python float, and the values are equal."""
    ours = s.ReduceOnPlateau(0.5, mode=mode, **options)
    optimizer = SimpleNamespace(learning_rate=0.5)
    theirs = keras.callbacks.ReduceLROnPlateau(monitor="m", mode=mode, **options)
    theirs.set_model(SimpleNamespace(optimizer=optimizer))
    theirs.on_train_begin()
    values = []
    for epoch, metric in enumerate(np.random.default_rng(3).integers(-40, 40, 120) / 8 + 0.0625):
        theirs.on_epoch_end(epoch, {"m": metric})
        values.append(ours.record(metric))
        assert values[-1] == optimizer.learning_rate == ours(epoch)
        assert (ours.best, ours.wait, ours.cooldown_counter) == (theirs.best, theirs.wait, theirs.cooldown_counter)
    assert len(set(values)) > 1


# Against optax and PyTorch.


@pytest.mark.parametrize(("row", "theirs"), IN_OPTAX, ids=lambda x: getattr(x, "id", ""))
def test_follows_optax(row: Row, theirs: Any) -> None:
    ours, theirs = row.make(), theirs()
    assert_follows([ours(t) for t in row.steps], [float(theirs(t)) for t in row.steps], FLOAT32)


def torch_values(name: str, count: int, rate: float = 0.3, **options: Any) -> tuple[list[float], list[float]]:
    """Return the learning rates and momenta of a scheduler of PyTorch."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate, momentum=0.5)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    rates, momenta = [], []
    for step in range(count):
        if step:
            optimizer.step()
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
    return rates, momenta


@pytest.mark.parametrize(("row", "name", "options"), IN_TORCH, ids=lambda x: getattr(x, "id", ""))
def test_follows_torch(row: Row, name: str, options: dict[str, Any]) -> None:
    fixed = {"max_lr": 0.3, **({"total_steps": 60} if name == "OneCycleLR" else {"base_lr": 0.05})}
    count = 60 if name == "OneCycleLR" else 200
    rates, _ = torch_values(name, count, **fixed, **options)
    ours = row.make()
    assert_follows([ours(t) for t in range(count)], rates, DOUBLE)
    if name == "OneCycleLR":
        assert ours(10**18) == pytest.approx(rates[-1], rel=DOUBLE)  # where PyTorch raises, it stays


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_one_cycle_can_be_that_of_a_momentum(three_phase: bool, strategy: str) -> None:
    shared = {"total_steps": 50, "three_phase": three_phase, "anneal_strategy": strategy}
    _, momenta = torch_values("OneCycleLR", 50, max_lr=0.3, **shared)
    ours = s.OneCycle(0.85, div_factor=0.85 / 0.95, final_div_factor=1.0, **shared)
    assert_follows([ours(t) for t in range(50)], momenta, DOUBLE)


def test_cyclic_can_be_that_of_a_momentum() -> None:
    _, momenta = torch_values("CyclicLR", 70, base_lr=0.1, max_lr=0.3, step_size_up=8)
    assert_follows([s.Cyclic(0.9, 0.8, step_size_up=8)(t) for t in range(70)], momenta, DOUBLE)


def test_restarts_and_joins_follow_torch_in_double_precision() -> None:
    rates, _ = torch_values("CosineAnnealingWarmRestarts", 200, T_0=10, T_mult=2, eta_min=0.03)
    assert_follows([s.CosineDecayRestarts(0.3, 10, alpha=0.1)(t) for t in range(200)], rates, DOUBLE)
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.25)
    parts = torch.optim.lr_scheduler
    joined = parts.SequentialLR(
        optimizer, [parts.ConstantLR(optimizer, 0.5, 100), parts.StepLR(optimizer, 5, 0.5)], milestones=[7]
    )
    ours = s.Sequential([0.125, s.ExponentialDecay(0.25, 5, 0.5, staircase=True)], [7])
    for step in range(40):
        assert ours(step) == optimizer.param_groups[0]["lr"]
        optimizer.step()
        joined.step()


def test_cyclic_as_in_the_paper() -> None:
    """Smith 2017, section 3.2: the peaks of three cycles of 8 iterations (PyTorch may be absent)."""
    peaks = [4, 12, 20]
    for mode, gamma, heights in [("triangular", 1, [1, 1, 1]), ("triangular2", 1, [1, 0.5, 0.25])]:
        assert [s.Cyclic(1.0, 2.0, 4, mode=mode, gamma=gamma)(t) - 1 for t in peaks] == heights
    shrinking = s.Cyclic(1.0, 2.0, 4, mode="exp_range", gamma=0.5)
    assert [shrinking(t) for t in (2, 4, 12)] == [1 + 0.5**3, 1 + 0.5**4, 1 + 0.5**12]


@pytest.mark.parametrize("row", [r for r in EVERY if len(r.bends)], ids=lambda row: row.id)
def test_a_step_too_early_is_seen(row: Row) -> None:
    """Some of the compared values differ by far more than the bounds: else the comparison would prove nothing."""
    ours = row.make()
    values = [ours(t) for t in row.steps]
    assert max(abs(ours(t + 1) - v) for t, v in zip(row.steps, values, strict=True)) > 100 * FLOAT32 * max(values)


# Promises of all schedules.


@every
def test_configuration_round_trip(row: Row) -> None:
    ours = row.make()
    plain = json.loads(json.dumps(ours.get_config()))
    assert plain == ours.get_config()
    for twin in (type(ours).from_config(plain), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        assert twin.get_config() == ours.get_config()
        assert [twin(t) for t in row.steps] == [ours(t) for t in row.steps]


@every
def test_repr_can_be_evaluated_and_parsed(row: Row) -> None:
    ours = row.make()
    for twin in (eval(repr(ours), vars(s)), parse(repr(ours))):
        assert twin.get_config() == ours.get_config()
    assert "name=" not in repr(ours)


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row.id)
def test_values_do_not_depend_on_the_kind_of_step(row: Row) -> None:
    ours = row.make()
    for step in row.steps:
        assert ours(np.int64(step)) == ours(step) == ours(step)


positive, height, fraction = st.floats(1e-3, 1e3), st.floats(0, 10), st.floats(0, 1)
counts = st.integers(1, 10**12)
ANY = st.one_of(
    st.builds(s.CosineDecay, height, counts, height, warmup_target=st.none() | height, warmup_steps=counts),
    st.builds(s.CosineDecayRestarts, height, counts | positive, st.floats(1, 5), height, fraction),
    st.builds(s.ExponentialDecay, height, counts | positive, height, st.booleans()),
    st.builds(s.InverseTimeDecay, height, counts | positive, height, st.booleans()),
    st.builds(s.LinearDecay, height, counts | positive, height),
    st.builds(s.PolynomialDecay, height, counts | positive, height, height, st.booleans()),
    st.builds(
        s.OneCycle,
        height,
        counts,
        st.floats(0, 0.5),
        st.sampled_from(["cos", "linear"]),
        positive,
        positive,
        st.booleans(),
    ),
    st.builds(
        s.Cyclic,
        height,
        height,
        counts,
        st.none() | counts,
        st.sampled_from(["triangular2", "exp_range"]),
        fraction,
    ),
)
STEPS = st.integers(0, 100) | st.integers(0, 2**63)


@given(ANY, STEPS)
def test_values_are_finite_for_any_step(schedule: Any, step: int) -> None:
    for ours in (schedule, s.Warmup(schedule, 10), s.Sequential([0.5, schedule], [50])):
        value = ours(step)
        assert isinstance(value, float)
        assert math.isfinite(value)
        if getattr(schedule, "alpha", 0) <= 1:
            assert value >= 0


@given(st.floats(1, 4), counts, st.integers(0, 40))
def test_restarts_begin_where_they_should(growth: float, first: int, period: int) -> None:
    """The lengths of the periods are added up here, to be independent of the rounded logarithm."""
    ours = s.CosineDecayRestarts(1.0, first, growth)
    begin = first * math.fsum(growth**i for i in range(period))
    step = math.ceil(begin) + math.ceil(first * growth**period * 1e-6)  # certainly at its beginning
    if step - begin < 0.01 * first * growth**period:
        assert ours(step) > 0.99


def test_huge_steps_are_exact() -> None:
    huge = 2**60
    assert [s.Cyclic(0.0, 1.0, 4)(huge + i) for i in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [s.CosineDecayRestarts(1.0, 4, 1.0)(huge + i) for i in (-4, 0, 4)] == [1, 1, 1]
    begin = 3 * (2**50 - 1)
    assert s.CosineDecayRestarts(1.0, 1000, 4.0)(5_461_000 - 1) < 1e-6  # Keras has already restarted here
    assert s.CosineDecayRestarts(1.0, 1000, 4.0)(5_461_000) == 1
    restarts = s.CosineDecayRestarts(1.0, 3, m_mul=0.5)
    assert restarts(begin) == 0.5**50
    assert restarts(begin - 1) < 1e-25
    assert [s.PiecewiseConstantDecay([huge], [1.0, 0.5])(huge + i) for i in (-1, 0, 1)] == [1, 1, 0.5]
    assert [s.Sequential([1.0, 0.5], [huge])(huge + i) for i in (-1, 0)] == [1, 0.5]
    stairs = s.InverseTimeDecay(1.0, huge, 1.0, staircase=True)
    assert [stairs(huge + i) for i in (-1, 0)] == [1, 0.5]
    assert s.PolynomialDecay(1.0, huge, 0.0, cycle=True)(huge + 1) == 0.5
    assert s.Warmup(lambda step: 0.5 + step, huge)(huge + 3) == 3.5


ERRORS: dict[str, tuple[type[Exception], str]] = {
    "CosineDecay(-0.1, 10)": (ValueError, "CosineDecay: initial_learning_rate must be >= 0, got -0.1"),
    "CosineDecay('0.1', 10)": (TypeError, "CosineDecay: initial_learning_rate must be a real number, got '0.1'"),
    "CosineDecay(0.1, 0)": (ValueError, "CosineDecay: decay_steps must be > 0, got 0"),
    "CosineDecay(0.1, 10, warmup_steps=-1)": (ValueError, "warmup_steps must be >= 0"),
    "CosineDecay(0.1, 10, warmup_steps=2.5)": (TypeError, "warmup_steps must be a whole number, got 2.5"),
    "CosineDecay(1e999, 10)": (ValueError, "must be finite, got inf"),
    "CosineDecay(0.1, 10, name=3)": (TypeError, "name must be a string, got 3"),
    "CosineDecay(0.1)": (TypeError, "CosineDecay: missing a required argument: 'decay_steps'"),
    "CosineDecay(0.1, decay_step=10)": (TypeError, "unknown argument 'decay_step', did you mean 'decay_steps'"),
    "CosineDecayRestarts(0.1, 10, t_mul=0.5)": (ValueError, "t_mul must be >= 1, got 0.5"),
    "CosineDecayRestarts(0.1, 10, alpha=2)": (ValueError, "alpha must be >= 0 and <= 1, got 2"),
    "ExponentialDecay(0.1, -1, 0.5)": (ValueError, "ExponentialDecay: decay_steps must be > 0, got -1"),
    "ExponentialDecay(0.1, 10, 0.5, staircase=1)": (TypeError, "staircase must be True or False, got 1"),
    "InverseTimeDecay(0.1, 10, -0.5)": (ValueError, "InverseTimeDecay: decay_rate must be >= 0"),
    "PolynomialDecay(0.1, 10, power=-1)": (ValueError, "PolynomialDecay: power must be >= 0, got -1"),
    "PiecewiseConstantDecay([2, 1], [1, 2, 3])": (
        ValueError,
        r"boundaries must be strictly increasing, got \[2, 1\]",
    ),
    "PiecewiseConstantDecay([1, 1], [1, 2, 3])": (ValueError, "boundaries must be strictly increasing"),
    "PiecewiseConstantDecay([1], [1])": (
        ValueError,
        "values must be one more than boundaries, got 1 values and 1",
    ),
    "PiecewiseConstantDecay([1], [1, -2])": (
        ValueError,
        r"PiecewiseConstantDecay: values\[1\] must be >= 0, got -2",
    ),
    "PiecewiseConstantDecay(['1'], [1, 2])": (TypeError, r"boundaries\[0\] must be a real number, got '1'"),
    "PiecewiseConstantDecay(1, [1, 2])": (TypeError, "boundaries must be a list, got 1"),
    "PiecewiseConstantDecay('12', [1, 2, 3])": (TypeError, "boundaries must be a list, got '12'"),
    "LinearDecay(0.1, 10, -1)": (ValueError, "LinearDecay: end_learning_rate must be >= 0"),
    "Warmup(-1.0, 10)": (ValueError, "Warmup: schedule must be >= 0, got -1.0"),
    "Warmup('x', 10)": (TypeError, "Warmup: schedule must be a real number, got 'x'"),
    "Warmup(0.1, -1)": (ValueError, "Warmup: warmup_steps must be >= 0, got -1"),
    "Sequential([0.1], [1])": (ValueError, "schedules must be one more than boundaries, got 1 schedules and 1"),
    "Sequential([0.1, 0.2], [0])": (ValueError, r"Sequential: boundaries\[0\] must be >= 1, got 0"),
    "Sequential([0.1, 0.2], [1.5])": (TypeError, r"boundaries\[0\] must be a whole number, got 1.5"),
    "Sequential([0.1, 0.2, 0.3], [5, 5])": (ValueError, r"boundaries must be strictly increasing, got \[5, 5\]"),
    "OneCycle(0.1, 0)": (ValueError, "OneCycle: total_steps must be >= 1, got 0"),
    "OneCycle(0.1, 10, 1.5)": (ValueError, "pct_start must be >= 0 and <= 1"),
    "OneCycle(0.1, 10, 0.6, three_phase=True)": (ValueError, "pct_start must be <= 0.5 with three_phase, got 0.6"),
    "OneCycle(0.1, 10, anneal_strategy='poly')": (
        ValueError,
        "anneal_strategy must be 'cos' or 'linear', got 'poly'",
    ),
    "OneCycle(0.1, 10, anneal_strategy=1)": (TypeError, "anneal_strategy must be 'cos' or 'linear', got 1"),
    "OneCycle(0.1, 10, div_factor=0)": (ValueError, "div_factor must be > 0, got 0"),
    "Cyclic(0.1, 0.2, 0)": (ValueError, "Cyclic: step_size_up must be >= 1, got 0"),
    "Cyclic(0.1, 0.2, gamma=1.5)": (ValueError, "gamma must be >= 0 and <= 1"),
    "Cyclic(0.1, 0.2, mode='square')": (ValueError, "mode must be 'triangular' or 'triangular2' or 'exp_range'"),
    "ReduceOnPlateau(0.1, factor=1)": (ValueError, "factor must be >= 0 and < 1, got 1"),
    "ReduceOnPlateau(0.1, mode='auto')": (ValueError, "mode must be 'min' or 'max', got 'auto'"),
    "ReduceOnPlateau(0.1, patience=-1)": (ValueError, "ReduceOnPlateau: patience must be >= 0, got -1"),
    "ReduceOnPlateau(0.1, best='x')": (TypeError, "best must be a real number, got 'x'"),
    "LearningRateSchedule()": (ValueError, "schedule must be one of CosineDecay, .*, got LearningRateSchedule"),
    "CosineDecay": (ValueError, "schedule must have arguments, as CosineDecay\\(...\\), got 'CosineDecay'"),
    "0.5": (ValueError, "schedule must be one of CosineDecay, .*, got '0.5'"),
    "CosineDecay(0.1, 10": (ValueError, "schedule must be a Python expression"),
    "CosineDecay(*[0.1, 10])": (ValueError, r"arguments must be .*, got \*\[0.1, 10\]"),
    "CosineDecay(**{'decay_steps': 1})": (ValueError, "arguments must be given one by one"),
    "CosineDecay(0.1, 2 ** 9999999999)": (ValueError, r"arguments must be .*, got 2 \*\* 9999999999"),
    "__import__('os').system('false')": (ValueError, "schedule must be one of"),
    "os.CosineDecay(0.1, 10)": (ValueError, "schedule must be one of .*, got os.CosineDecay"),
    "parse('CosineDecay(0.1, 10)')": (ValueError, "schedule must be one of .*, got parse"),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_tell_what_is_wrong(text: str) -> None:
    error, message = ERRORS[text]
    with pytest.raises(error, match=message):
        parse(text)


def test_a_change_that_does_not_fit_is_refused() -> None:
    ours = s.PiecewiseConstantDecay([1, 2], [1.0, 0.5, 0.25])
    with pytest.raises(ValueError, match="strictly increasing"):
        ours.boundaries = [2, 1]
    assert ours(2) == 0.5
    with pytest.raises(TypeError, match="must be a number or a schedule, got the class CosineDecay"):
        s.Warmup(s.CosineDecay, 10)
    with pytest.raises(TypeError, match=r"metric must be a real number, got '0\.5'"):
        s.ReduceOnPlateau(0.5).record("0.5")


def test_a_metric_that_is_not_finite_never_improves() -> None:
    plateau = s.ReduceOnPlateau(0.5, factor=0.5, patience=2)
    for metric in (math.nan, -math.inf):
        plateau.record(metric)
    assert (plateau(), plateau.best) == (0.25, None)
    assert (plateau.record(3.0), plateau.best) == (0.25, 3.0)
