"""Gradients in storage formats are read in place, with the result of NumPy's cast to float32 or float64."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastvar as fv
from fastvar import formats, kernels
from fastvar.kernels import reference
from fastvar.slices import Rows
from tests.support.cases import RULE_CASES, Case, assert_same_bits, contents
from tests.support.runs import COMBINATIONS, elementwise, every_case, gradients, variables

MODULES = {isa: kernels.load(isa)[1] for isa in kernels.supported()}
COMPARED = [*itertools.product(MODULES.items(), (1, 3))]
STORED = [name for name in formats.FORMATS if name not in ("float32", "float64")]
SIZES = [40_001, 33_001, 3, 0, 1, 255, 257, 1024]
BEFORE = {"scale": 0.3, "l2": 0.07, "l1": 0.013, "clip": 0.7, "limit": 0.11}
AFTER = {"decay": 0.021, "average": 0.9, "overwrite": 1.0, "low": 0.0, "high": 0.5}
STAGES = {"raw": {}, "scaled": {"scale": 0.3}, "staged": {**BEFORE, **AFTER}}
every_format = pytest.mark.parametrize("stored", STORED)
every_rule = pytest.mark.parametrize("rule", sorted(kernels.RULES))


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def of(stored: str, values: Any) -> Any:
    """Round numbers to a format, in memory one element after a boundary."""
    values = np.asarray(values)
    room = np.zeros(values.size + 1, dtype_of(stored))
    room[1:] = values.reshape(-1)
    return room[1:].reshape(values.shape)


def cast(values: Any, dtype: Any) -> Any:
    """Cast with NumPy, or ml_dtypes."""
    with np.errstate(invalid="ignore"):  # signaling NaNs
        return values.astype(dtype)


def every_pattern(stored: str) -> Any:
    """Return all bit patterns of a format."""
    bits = 8 * formats.FORMATS[stored]
    return np.arange(2**bits).astype(f"u{bits // 8}").view(dtype_of(stored))


@every_format
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_every_pattern_is_decoded_exactly(stored: str, wide: bool, isa: str) -> None:
    """Rprop keeps its gradient; so do rows that are sorted."""
    module, dtype = MODULES.get(isa, reference), "f8" if wide else "f4"
    patterns = every_pattern(stored)
    for begin, step in ((0, 1), (0, -1), (7, 1), (65, -1)):
        given = patterns[begin::step].copy()
        w, kept = np.zeros(given.size, dtype), np.zeros(given.size, dtype)
        plan = module.Plan("test", module.RULES["rprop"], ["w"], [w], [[kept, np.ones_like(w)]], [0])
        plan.bind([given])
        plan.run([RULE_CASES["rprop"].scalars(1)])
        assert_same_bits(kept, cast(given, dtype))
        backwards = np.arange(given.size)[::-1].copy()
        merged = module.merge(Rows(backwards, given), wide)
        assert_same_bits(merged.values, cast(given[::-1], dtype))


SUMS = [("weights", "weights"), ("gradient", "direction")]


class Scene:
    """A plan on float32 and float64 variables with the gradients `given`."""

    def __init__(self, module: Any, rule: str, given: list[Any], stages: dict[str, float], directed: bool) -> None:
        rng = np.random.default_rng(1)
        shapes = [g.shape for g in given]
        dtypes = [("f4", "f8")[i % 2] for i in range(len(shapes))]
        made = [
            [np.asarray(rng.standard_normal(s), d) for s, d in zip(shapes, dtypes, strict=True)] for _ in range(3)
        ]
        count = len(reference.RULES[rule].slots)
        slots = [[np.abs(rng.standard_normal(w.shape)).astype(w.dtype) for _ in range(count)] for w in made[0]]
        averages = made[1] if "average" in stages else None
        names, groups = [str(i) for i in range(len(shapes))], [i % 2 for i in range(len(shapes))]
        more: Any = {"directions": made[2], "direct": [True, True], "sums": [SUMS, SUMS]} if directed else {}
        self.plan = module.Plan("test", module.RULES[rule], names, made[0], slots, groups, averages, **more)
        for name, value in stages.items():
            self.plan.stages[name] = value
        self.scalars = [RULE_CASES[rule].scalars(t) for t in (2, 5)]
        self.arrays = [*itertools.chain(*made), *itertools.chain(*slots)]

    def play(self, given: list[Any], threads: int = 1, zero: bool = False, guard: bool = False) -> list[Any]:
        """Take a step, and return all arrays that it changes."""
        self.plan.bind(given, zero)
        norms = [self.plan.sums_of_squares(each, threads) for each in (True, False)]
        norms.append(self.plan.sums(self.scalars, threads))
        found = self.plan.run(self.scalars, threads, None, None, guard)
        return [*norms, np.array(found), *self.arrays]


def assert_as_decoded(
    rule: str, stored: str, given: list[Any], stages: dict[str, float], directed: bool = False, **options: bool
) -> None:
    """Compare steps with stored gradients to the reference with gradients that NumPy has cast."""
    decoded = [cast(g, np.float32) for g in given]
    expected = Scene(reference, rule, given, stages, directed).play(decoded, **options)
    for (isa, module), threads in [(("reference", reference), 1), *COMPARED]:
        ours = [of(stored, g) for g in given]
        actual = Scene(module, rule, given, stages, directed).play(ours, threads, **options)
        for a, e in zip(actual, expected, strict=True):
            assert_same_bits(a, e, f"{isa}, {threads} threads")
        for g, before in zip(ours, given, strict=True):
            assert g.tobytes() == (bytes(g.nbytes) if options.get("zero") else before.tobytes())


def numbers(stored: str, sizes: list[Any], special: bool = False) -> list[Any]:
    rng = np.random.default_rng(2)
    patterns = every_pattern(stored)
    return [rng.choice(patterns, size) if special else of(stored, rng.standard_normal(size)) for size in sizes]


@every_rule
@every_format
@pytest.mark.parametrize("stages", STAGES)
def test_steps_are_those_of_the_decoded_gradient(rule: str, stored: str, stages: str) -> None:
    zero = stages != "raw"
    assert_as_decoded(rule, stored, numbers(stored, SIZES), STAGES[stages], zero=zero)
    assert_as_decoded(rule, stored, numbers(stored, [5000, 1040, 17], special=True), STAGES[stages], zero=not zero)


@every_rule
@every_format
def test_directions_are_those_of_the_decoded_gradient(rule: str, stored: str) -> None:
    for stages, zero in (({}, False), (BEFORE, True)):
        assert_as_decoded(rule, stored, numbers(stored, [20_000, 17_000, 7]), stages, directed=True, zero=zero)


@every_rule
@every_format
@pytest.mark.parametrize("spoilt", [False, True])
def test_guarded_steps_are_those_of_the_decoded_gradient(rule: str, stored: str, spoilt: bool) -> None:
    for stages in ({}, BEFORE):
        given = numbers(stored, [20_000, 17_000, 257])
        if spoilt:
            given[0][16_385] = np.nan
            given[2][-1] = -np.inf
        assert_as_decoded(rule, stored, given, stages, guard=True)
        if not spoilt:
            assert_as_decoded(rule, stored, given, stages, guard=True, zero=True)


def play_rows(module: Any, rule: str, given: list[Any], stages: dict[str, float], threads: int) -> list[Any]:
    shapes = [(1200, 33), (40, 7), (50,), (9, 0)]
    whole = [np.zeros(s, np.float32) for s in shapes]
    scene = Scene(module, rule, whole, stages, False)
    return scene.play(given, threads)


@every_rule
@every_format
@pytest.mark.parametrize("rising", [False, True])
def test_rows_are_those_of_the_decoded_gradient(rule: str, stored: str, rising: bool) -> None:
    """The values of a row are cast to the dtype of the variable before they are added."""
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, n, k) for n, k in ((1200, 800), (40, 9), (50, 30), (9, 4))]
    rows = [np.unique(of_one) for of_one in rows] if rising else rows
    values = numbers(stored, [(len(rows[0]), 33), (len(rows[1]), 7), (len(rows[2]),), (len(rows[3]), 0)])
    for stages in STAGES.values():
        dtypes = ("f4", "f8", "f4", "f8")  # of the variables, see Scene
        decoded = [fv.IndexedSlices(v.astype(d), r) for v, r, d in zip(values, rows, dtypes, strict=True)]
        expected = play_rows(reference, rule, decoded, stages, 1)
        for (isa, module), threads in [(("reference", reference), 1), *COMPARED]:
            ours = [fv.IndexedSlices(of(stored, v), r) for v, r in zip(values, rows, strict=True)]
            for a, e in zip(play_rows(module, rule, ours, stages, threads), expected, strict=True):
                assert_same_bits(a, e, f"{isa}, {threads} threads")


@every_case
@every_format
@pytest.mark.parametrize("options", COMBINATIONS, ids=range(4))
def test_optimizers_step_as_with_float32(case: Case, stored: str, options: dict[str, Any]) -> None:
    results = []
    for decode in (False, True):
        given = variables()
        optimizer = case.make(**options)
        for t in range(4):
            grads = [of(stored, g) for g in gradients(t)]
            optimizer.apply([g.astype(np.float32) for g in grads] if decode else grads, given)
        results.append(contents(optimizer, given))
    assert results[0] == results[1]


@elementwise
@every_format
def test_optimizers_zero_gradients_in_their_format(case: Case, stored: str) -> None:
    given = variables()
    optimizer = case.make()
    optimizer.build(given)
    for v, g in zip(given, gradients(), strict=True):
        v.grad = of(stored, g)
    kept = [v.grad for v in given]
    optimizer.step(zero_grad=True)
    for v, g in zip(given, kept, strict=True):
        assert v.grad is g
        assert g.tobytes() == bytes(g.nbytes)


def layouts(g: Any) -> dict[str, Any]:
    """Return the same numbers in layouts that kernels cannot read in place."""
    strided = np.repeat(g, 2, axis=1)[:, ::2]
    found = {"strided": strided, "Fortran": np.asfortranarray(g)}
    if g.itemsize == 1:
        return found
    room = np.zeros(g.nbytes + 1, np.uint8)
    misaligned = room[1:].view(g.dtype).reshape(g.shape)
    misaligned[...] = g
    return {**found, "misaligned": misaligned, "swapped": g.astype(g.dtype.newbyteorder())}


@every_format
@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_what_lies_otherwise_is_copied(stored: str, isa: str) -> None:
    module = MODULES.get(isa, reference)
    g = of(stored, np.random.default_rng(4).standard_normal((7, 5)))
    for name, odd in layouts(g).items():
        w = np.zeros((7, 5), np.float32)
        plan = module.Plan("test", module.RULES["gradient_descent"], ["w"], [w], [()], [0])
        plan.bind([odd])
        plan.run([(-1.0,)])
        assert_same_bits(w, g.astype(np.float32), name)
        with pytest.raises(ValueError, match="gradient of w: must be a writable contiguous array"):
            plan.bind([odd], True)


@every_format
@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_memory_that_is_written_is_no_gradient(stored: str, isa: str) -> None:
    module = MODULES.get(isa, reference)
    room = np.zeros(64, np.float32)
    w, slot = room[16:24], room[40:48]
    plan = module.Plan("test", module.RULES["momentum"], ["w"], [w], [[slot]], [0])
    given = room.view(dtype_of(stored))
    each = 4 // given.itemsize  # elements in a float32
    for array in (16, 40):
        begin, end = array * each, (array + 8) * each
        for at in (begin - 7, begin, end - 1):  # the last or the first element is shared, or all are
            with pytest.raises(
                ValueError, match=r"test: gradient of w: must not share memory with test: (w|slot 0)"
            ):
                plan.bind([given[at : at + 8]])
        for at in (begin - 8, end):
            assert plan.bind([given[at : at + 8]]) == 1
    narrow = given[12 * each : 12 * each + 8]  # as float32 there are more bytes
    plan.bind([narrow])
    with pytest.raises(ValueError, match="must not share memory"):
        plan.bind([room[12:20]])
    plan.bind([narrow])


@every_format
@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_gradients_that_are_zeroed_lie_apart(stored: str, isa: str) -> None:
    module = MODULES.get(isa, reference)
    w = [np.zeros(8, np.float32) for _ in range(2)]
    plan = module.Plan("test", module.RULES["gradient_descent"], ["a", "b"], w, [(), ()], [0, 0])
    room = np.ones(32, dtype_of(stored))
    plan.bind([room[:8], room[8:16]], True)
    with pytest.raises(ValueError, match="must not share memory"):
        plan.bind([room[:8], room[7:15]], True)
    wide = room.view(np.float32)[:8]  # where the first was, but longer
    with pytest.raises(ValueError, match="must not share memory"):
        plan.bind([wide, room[8:16]], True)


def test_another_dtype_of_that_name_is_not_read_in_place() -> None:
    assert all(formats.in_place(dtype_of(name)) for name in formats.FORMATS)
    for dtype in (">f2", ">f4", "i2", "u1", "f4,f4", "V2", "c8", ml_dtypes.float8_e3m4, "?"):
        assert not formats.in_place(np.dtype(dtype))
    assert not formats.in_place(dtype_of("bfloat16").newbyteorder())
