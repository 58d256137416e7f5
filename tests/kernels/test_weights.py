"""Weights of 16 bits: compiled runs equal the NumPy twin bit for bit, and a master keeps every float32 number.

Compared over formats of weights and slots, rules, instruction sets, threads, stages, sparse rows, guarded runs,
sums, matrices, sizes, alignments and special values. Nothing is written outside the arrays.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvar import kernels
from fastvar.formats import OF_MASTERS, Master, dtype_of
from fastvar.kernels import reference, rounding
from fastvar.masters import join, split
from tests.support.cases import assert_same_bits
from tests.support.scenes import BFLOAT16, MODULES, STAGED, Scene, Spec, assert_equal, assert_equals_twin

FORMATS = ["bfloat16", "bfloat16 master", "float16 master"]
SLOTS = itertools.cycle([("native",), ("bfloat16",), ("8bit",), ("8bit", "bfloat16", "native")])
every_rule = pytest.mark.parametrize("rule", sorted(kernels.RULES))
every_format = pytest.mark.parametrize("weights", FORMATS)
every_isa = pytest.mark.parametrize("isa", [*MODULES, "reference"])
both_stages = pytest.mark.parametrize("stages", [{}, STAGED], ids=["raw", "staged"])


@every_rule
@every_format
@both_stages
def test_steps_equal_the_twin(rule: str, weights: str, stages: dict[str, float]) -> None:
    sizes = [16_900, 1, 0, 255, 257, 2100]
    dtypes = itertools.cycle(["f4", BFLOAT16, "f2", "f8", None])
    specs = [
        Spec((n,), gradient=next(dtypes), formats=next(SLOTS), weights=weights, offset=k, stages=stages)
        for k, n in enumerate(sizes)
    ]
    assert_equals_twin(rule, [*specs, Spec((300,), "f8")], zero=bool(stages))


def test_steps_beyond_caches_equal_the_twin() -> None:
    specs = [
        Spec((n,), gradient=BFLOAT16, formats=("bfloat16",), weights="bfloat16 master", offset=n, stages=stages)
        for n, stages in ((2_200_001, {}), (2_100_000, STAGED))
    ]
    assert_equals_twin("adam", specs, threads=(3,))


@every_rule
@every_format
def test_special_values_equal_the_twin(rule: str, weights: str) -> None:
    specs = [
        Spec((n,), gradient="f8", formats=next(SLOTS), weights=weights, offset=n, stages=stages)
        for n, stages in ((3000, {}), (2000, STAGED))
    ]
    assert_equals_twin(rule, specs, threads=(1,), special=True)


@every_rule
@every_format
@pytest.mark.parametrize("bad", [False, True])
def test_guarded_steps_equal_the_twin(rule: str, weights: str, bad: bool) -> None:
    specs = [
        Spec((n,), formats=next(SLOTS), weights=weights, offset=n, stages=stages, bad=bad and n == 257)
        for n, stages in ((2000, {}), (257, STAGED), (3, STAGED))
    ]
    found = assert_equals_twin(rule, specs, threads=(3,), guard=True, zero=True)
    assert found == [[], [(1, True)] if bad else [], []]


@every_rule
@every_format
@both_stages
def test_rows_equal_the_twin(rule: str, weights: str, stages: dict[str, float]) -> None:
    shapes: list[Any] = [((12, 131), 5), ((40, 2, 65), 30), ((9, 0), 4), ((300,), 70)]
    slots = itertools.cycle([("native",), ("bfloat16",)])
    specs = [Spec(s, rows=k, formats=next(slots), weights=weights, offset=3, stages=stages) for s, k in shapes]
    specs = [replace(specs[0], bad=bool(stages)), *specs[1:], replace(specs[0], rows=None)]
    assert_equals_twin(rule, specs, threads=(3,))
    found = assert_equals_twin(rule, specs, threads=(3,), guard=True)
    assert found == [[], [(0, True)] if stages else [], []]


@every_rule
@every_format
def test_sums_and_directions_equal_the_twin(rule: str, weights: str) -> None:
    every: list[Any] = [("weights", "weights"), ("direction", "gradient"), ("weights", "direction"), ("weights",)]
    options = {"sums": [every, every[:2]], "direct": [True, False]}
    specs = [
        Spec((n,), weights=weights, offset=n, stages=stages)
        for n, stages in ((2000, {}), (257, STAGED), (18_000, {}), (5, STAGED))
    ]
    assert_equals_twin(rule, specs, threads=(3,), options=options)
    totals = []
    for module, threads in zip((reference, *MODULES.values()), (1, 1, 2, 3), strict=False):
        scene = Scene(module, rule, specs, **options)
        scene.bind(1)
        totals.append(scene.plan.sums(scene.scalars(1), threads))
    for total in totals[1:]:
        assert_same_bits(total, totals[0])


@every_format
def test_sums_of_matrices_equal_the_twin(weights: str) -> None:
    shapes: list[Any] = [(40, 300), (700, 1), (5, 3)]
    specs = [Spec(shape, weights=weights, offset=1, stages={"l2": 0.1}) for shape in shapes]
    totals = []
    for module, threads in zip((reference, *MODULES.values()), (1, 1, 2, 3), strict=False):
        scene = Scene(module, "adam", specs, matrices=[(shapes, True)])
        scene.bind(1)
        totals.append([scene.plan.unit_sums(0, of_weights, threads) for of_weights in (True, False)])
        totals[-1].append((scene.plan.sums_of_squares(True, threads),))
    for total in totals[1:]:
        for actual, expected in zip(itertools.chain(*total), itertools.chain(*totals[0]), strict=True):
            assert_same_bits(actual, expected)


a_variable = st.builds(
    Spec,
    shape=st.tuples(st.integers(0, 600) | st.sampled_from([255, 256, 1024, 16_385])),
    gradient=st.sampled_from(["f4", BFLOAT16, "f8", "f2", None]),
    formats=st.lists(st.sampled_from(["8bit", "bfloat16", "native"]), min_size=1, max_size=3),
    weights=st.sampled_from(["native", *FORMATS]),
    offset=st.integers(0, 15),
    stages=st.dictionaries(st.sampled_from(sorted(STAGED)), st.just(0), max_size=5).map(
        lambda chosen: {name: STAGED[name] for name in chosen}
    ),
)


@settings(max_examples=60)
@given(
    rule=st.sampled_from(sorted(kernels.RULES)),
    specs=st.lists(a_variable, max_size=5),
    special=st.booleans(),
    guard=st.booleans(),
)
def test_any_plan_equals_the_twin(rule: str, specs: list[Spec], special: bool, guard: bool) -> None:
    assert_equals_twin(rule, specs, special=special, guard=guard)


# Masters.


LOWER = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
ALL = os.environ.get("FASTVAR_FLOATS") == "all"


def numbers() -> Iterator[Any]:
    """Yield floats of every sign, exponent and upper 7 bits of the mantissa: with some lower bits, or all."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in np.arange(1 << 16, dtype=np.uint32).reshape(-1, 4) if ALL else [np.array(LOWER, np.uint32)]:
        yield (high[:, None] | lower).reshape(-1).view(np.float32)


def master_of(name: str, x: Any) -> Master:
    """Return weights with a master, of these numbers."""
    master = Master(np.zeros(x.shape, dtype_of(name)), np.zeros(x.shape, OF_MASTERS[name]))
    split(master, x)
    return master


def nearest_float16(x: Any) -> Any:
    """Return the nearest numbers of float16, ties to even, as float64: multiples of a unit for each octave."""
    unit = np.ldexp(1.0, np.maximum(np.frexp(x)[1] - 11, -24))
    nearest = np.rint(x / unit) * unit
    return np.where(np.abs(nearest) > np.finfo(np.float16).max, np.copysign(np.inf, nearest), nearest)


@pytest.mark.parametrize("name", OF_MASTERS)
def test_a_master_keeps_every_number(name: str) -> None:
    """The twin parts and joins them; a step of zero of all others changes no bit."""
    for x in numbers():
        master, number = master_of(name, x), ~np.isnan(x)
        joined = join(master)
        assert (joined.view("u4") == x.view("u4"))[number].all()
        assert np.isnan(joined[~number]).all()
        assert np.isnan(master.weights[~number].astype("f4")).all()
        check_rounding(x[number], master.weights[number])
        for array, one in zip(master, master_of(name, np.ones(1, "f4")), strict=True):
            array[~number] = one
        for isa, module in MODULES.items():
            check_step_of_zero(module, master, isa)


def check_rounding(x: Any, weights: Any) -> None:
    if weights.dtype == np.float16:
        rounded = nearest_float16(x.astype("f8"))
        assert (rounded == weights).all()
        assert (np.signbit(rounded) == np.signbit(weights)).all()
    else:  # to nearest as in ml_dtypes, but ties away from 0
        same = weights.view("u2") == x.astype(BFLOAT16).view("u2")
        assert (same | ((x.view("u4") & 0xFFFF) == 0x8000)).all()
        assert (weights.view("u2") - (x.view("u4") >> 16) == (x.view("u4") >> 15 & 1)).all()


def check_step_of_zero(module: Any, master: Master, what: str) -> None:
    after = Master(*(array.copy() for array in master))
    plan = module.Plan("test", module.RULES["gradient_descent"], ["w"], [after], [()], [0])
    plan.bind([np.zeros(master.weights.shape, "f4")])
    plan.run([(0.0,)])
    for array, before in zip(after, master, strict=True):
        assert array.tobytes() == before.tobytes(), what


@pytest.mark.parametrize("name", OF_MASTERS)
def test_a_step_of_zero_of_the_twin_changes_no_bit(name: str) -> None:
    some = np.arange(0, 1 << 32, 4099, dtype=np.uint32).view(np.float32)
    check_step_of_zero(reference, master_of(name, np.where(np.isnan(some), np.float32(1), some)), "")


@every_isa
def test_bfloat16_that_does_not_change_stays(isa: str) -> None:
    module = MODULES.get(isa, reference)
    w = np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16)
    before = np.where((w.view("u2") & 0x7FFF) > 0x7F80, np.uint16(0x7FC0), w.view("u2"))  # one NaN for all
    plan = module.Plan("test", module.RULES["gradient_descent"], ["w"], [w], [()], [0])
    rounding.set_seeds(plan.seeds, 7, 1, np.arange(1))
    plan.bind([np.zeros(w.shape, "f4")])
    plan.run([(0.0,)])
    np.testing.assert_array_equal(w.view("u2") & 0x7FFF, before & 0x7FFF)


@every_isa
def test_float16_that_somebody_writes_counts(isa: str) -> None:
    module = MODULES.get(isa, reference)
    master = Master(np.zeros(600, np.float16), np.zeros(600, np.float32))
    split(master, np.full(600, 1.0001, "f4"))
    master.weights[300:] = 2
    plan = module.Plan("test", module.RULES["gradient_descent"], ["w"], [master], [()], [0])
    plan.bind([np.ones(600, "f4")])
    plan.run([(0.5,)])
    np.testing.assert_array_equal(master.rest, [np.float32(1.0001) - np.float32(0.5)] * 300 + [1.5] * 300)


@every_isa
def test_without_a_master_rounding_is_unbiased(isa: str) -> None:
    module, n, steps = MODULES.get(isa, reference), 4096, 64
    w = np.ones(n, BFLOAT16)
    plan = module.Plan("test", module.RULES["gradient_descent"], ["w"], [w], [()], [0])
    for t in range(1, steps + 1):
        rounding.set_seeds(plan.seeds, 7, t, np.arange(1))
        plan.bind([np.full(n, -1e-4, "f4")])
        plan.run([(1.0,)])
    # Each step moves 1e-4 in expectation; to nearest, none would move. The spacing above 1 is 2^-7.
    deviation = np.sqrt(steps * 1e-4 * 2.0**-7 / n)
    assert abs(w.astype("f8").mean() - (1 + steps * 1e-4)) < 5 * deviation  # 1 in 1.7 million


# The gate.

WRONG: dict[str, tuple[Any, str]] = {
    "float16 alone": (np.zeros(600, np.float16), "float16 must have a master"),
    "a master of float32": (
        Master(np.zeros(600, "f4"), np.zeros(600, "f4")),
        "dtype must be bfloat16 or float16 with",
    ),
    "bits of another dtype": (
        Master(np.zeros(600, BFLOAT16), np.zeros(600, np.uint16)),
        r"master must be int16 of shape \(600,\), got uint16",
    ),
    "numbers of another shape": (
        Master(np.zeros(600, np.float16), np.zeros(599, np.float32)),
        r"master must be float32 of shape \(600,\), got float32 of shape \(599,\)",
    ),
    "strided bits": (Master(np.zeros(600, BFLOAT16), np.zeros(1200, np.int16)[::2]), "array must be C-contiguous"),
    "strided weights": (np.zeros(1200, BFLOAT16)[::2], "array must be C-contiguous"),
    "the same memory": (Master(SHARED := np.zeros(600, BFLOAT16), SHARED.view(np.int16)), "must not share memory"),
    "other 16 bits": (np.zeros(600, np.int16), "dtype must be float32 or float64, got int16"),
    "eight bits": (np.zeros(600, ml_dtypes.float8_e4m3), "dtype must be float32 or float64, got float8_e4m3"),
}


@every_isa
@pytest.mark.parametrize("what", WRONG)
def test_weights_that_do_not_fit_are_refused(what: str, isa: str) -> None:
    module, (weights, error) = MODULES.get(isa, reference), WRONG[what]
    with pytest.raises((TypeError, ValueError), match=f"test: w.*{error}"):
        module.Plan("test", module.RULES["momentum"], ["w"], [weights], [[np.zeros(600, "f4")]], [0])


@every_isa
@every_format
def test_memory_of_weights_is_no_gradient(weights: str, isa: str) -> None:
    scene = Scene(MODULES.get(isa, reference), "momentum", [Spec((600,), weights=weights)])
    for array in scene.arrays():
        inside = np.lib.stride_tricks.as_strided(array.view("u2")[:1], (600,), (2,), writeable=False)
        with pytest.raises(ValueError, match="gradient of 0: must not share memory with test: "):
            scene.plan.bind([inside.view(np.float16)])
    assert_equal(scene.w[0] if weights == "bfloat16" else scene.w[0].weights, next(iter(scene.arrays())), "")
