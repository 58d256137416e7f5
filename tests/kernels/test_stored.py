"""Slots in other formats than the weights: compiled runs equal the NumPy twin bit for bit.

Compared over formats, rules, instruction sets, threads, stages, sparse rows, guarded runs, sums, sizes, alignments
and special values. Nothing is written outside the codes, scales and other arrays.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvar as fv
from fastvar import kernels
from fastvar.formats import Codes
from fastvar.kernels import reference, rounding
from tests.support.cases import assert_same_bits
from tests.support.scenes import BFLOAT16, MODULES, STAGED, Scene, Spec, assert_equal, assert_equals_twin

FORMATS = {"bfloat16": ("bfloat16",), "8bit": ("8bit",), "mixed": ("8bit", "bfloat16", "native")}
every_rule = pytest.mark.parametrize("rule", sorted(kernels.RULES))
every_format = pytest.mark.parametrize("formats", FORMATS)
both_stages = pytest.mark.parametrize("stages", [{}, STAGED], ids=["raw", "staged"])


@every_rule
@every_format
@both_stages
def test_steps_equal_the_twin(rule: str, formats: str, stages: dict[str, float]) -> None:
    sizes = [16_900, 1, 0, 255, 256, 257, 1023, 1025, 2100, 513]
    dtypes = itertools.cycle(["f4", "f8", "f4"])
    specs = [
        Spec((n,), next(dtypes), next(dtypes), None, FORMATS[formats], k, stages) for k, n in enumerate(sizes)
    ]
    assert_equals_twin(rule, specs, zero=bool(stages))


def assert_equal_sums(rule: str, specs: list[Spec], options: dict[str, Any]) -> None:
    scenes = [Scene(module, rule, specs, **options) for module in (reference, *MODULES.values())]
    totals = []
    for scene, threads in zip(scenes, (1, 1, 2, 3), strict=False):
        before = [array.copy() for array in scene.arrays()]
        scene.bind(1)
        totals.append(scene.plan.sums(scene.scalars(1), threads))
        for actual, expected in zip(scene.arrays(), before, strict=True):
            assert_equal(actual, expected, "sums changed it")
    for total in totals[1:]:
        assert_same_bits(total, totals[0])


@pytest.mark.parametrize("formats", ["native", "mixed"])
@pytest.mark.parametrize("summed", [False, True])
def test_steps_beyond_caches_equal_the_twin(formats: str, summed: bool) -> None:
    specs = [
        Spec((n,), "f4", "f4", None, FORMATS.get(formats, ("native",)), n, STAGED if n % 2 else {})
        for n in (2_000_000, 2_700_001, 16_385)
    ]
    options = {"sums": [[("direction", "direction")]] * 2, "direct": [True, False]} if summed else {}
    assert_equals_twin("adam", specs, threads=(3,), options=options)
    if summed:
        assert_equal_sums("adam", specs, options)


@every_rule
@every_format
def test_special_values_equal_the_twin(rule: str, formats: str) -> None:
    specs = [
        Spec((n,), dtype, "f8", None, FORMATS[formats], n, stages)
        for n, dtype, stages in ((3000, "f4", {}), (2000, "f8", STAGED), (700, "f8", {}))
    ]
    assert_equals_twin(rule, specs, threads=(1,), special=True)


@every_rule
@every_format
@pytest.mark.parametrize("bad", [False, True])
def test_guarded_steps_equal_the_twin(rule: str, formats: str, bad: bool) -> None:
    specs = [
        Spec((n,), dtype, dtype, None, FORMATS[formats], n, stages, bad and n == 257)
        for n, dtype, stages in ((2000, "f4", {}), (257, "f8", STAGED), (3, "f4", STAGED))
    ]
    found = assert_equals_twin(rule, specs, threads=(3,), guard=True, zero=True)
    assert found == [[], [(1, True)] if bad else [], []]


def rows(formats: str, stages: dict[str, float], bad: bool = False) -> list[Spec]:
    """Return specs with sparse gradients, whose rows are whole groups if slots are in 8 bits, and a dense one."""
    width = 131 if formats == "bfloat16" else 512
    shapes: list[Any] = [((12, width), 5), ((40, 2, width // 2), 30), ((9, 0), 4)]
    shapes = [*shapes, ((300,), 70)] if formats == "bfloat16" else shapes
    sparse = [Spec(shape, "f4", "f4", k, FORMATS[formats], 3, stages) for shape, k in shapes]
    return [replace(sparse[0], dtype="f8", bad=bad), *sparse[1:], replace(sparse[0], rows=None)]


@every_rule
@every_format
@both_stages
def test_rows_equal_the_twin(rule: str, formats: str, stages: dict[str, float]) -> None:
    assert_equals_twin(rule, rows(formats, stages), threads=(3,))
    found = assert_equals_twin(rule, rows(formats, stages, bad=bool(stages)), threads=(3,), guard=True)
    assert found == [[], [(0, True)] if stages else [], []]


@every_format
@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_rows_get_the_bits_of_a_dense_gradient(formats: str, isa: str) -> None:
    dense = rows(formats, STAGED)[-1]
    results = []
    for spec in (dense, replace(dense, rows=dense.shape[0])):
        scene = Scene(MODULES.get(isa, reference), "adam", [spec])
        scene._rows = lambda spec: np.arange(spec.shape[0])  # type: ignore[method-assign]
        scene.play()
        results.append(list(scene.arrays()))
    for actual, expected in zip(*results, strict=True):
        assert_equal(actual, expected, isa)


@every_rule
@every_format
def test_sums_and_directions_equal_the_twin(rule: str, formats: str) -> None:
    count = len(reference.RULES[rule].slots)
    every: list[Any] = [("weights", "weights"), ("direction", "gradient"), ("direction", "direction")]
    every = [*every, (count - 1,)] if count else every
    options = {"sums": [every, every[:2]], "direct": [True, False]}
    specs = [
        Spec((n,), dtype, dtype, None, FORMATS[formats], n, stages)
        for n, dtype, stages in ((2000, "f4", {}), (257, "f8", STAGED), (18_000, "f4", {}), (5, "f4", STAGED))
    ]
    assert_equals_twin(rule, specs, threads=(3,), options=options)
    assert_equal_sums(rule, specs, options)


stored = st.lists(st.sampled_from(["8bit", "bfloat16", "native"]), min_size=1, max_size=3)
stages = st.dictionaries(st.sampled_from(sorted(STAGED)), st.just(0), max_size=5).map(
    lambda chosen: {name: STAGED[name] for name in chosen}
)
a_variable = st.builds(
    Spec,
    shape=st.tuples(st.integers(0, 600) | st.sampled_from([255, 256, 1024, 16_385])),
    dtype=st.sampled_from(["f4", "f8"]),
    gradient=st.sampled_from(["f4", "f8", "f4", "f2", None]),
    formats=stored,
    offset=st.integers(0, 15),
    stages=stages,
)
a_table = st.builds(
    Spec,
    shape=st.tuples(st.integers(1, 40), st.sampled_from([256, 512])),
    dtype=st.sampled_from(["f4", "f8"]),
    rows=st.integers(0, 40),
    formats=stored,
    offset=st.integers(0, 15),
    stages=stages,
)


@settings(max_examples=60)
@given(
    rule=st.sampled_from(sorted(kernels.RULES)),
    specs=st.lists(a_variable | a_table, max_size=5),
    special=st.booleans(),
    guard=st.booleans(),
)
def test_any_plan_equals_the_twin(rule: str, specs: list[Spec], special: bool, guard: bool) -> None:
    specs = [s if s.rows is None else replace(s, rows=min(s.rows, s.shape[0])) for s in specs]
    assert_equals_twin(rule, specs, special=special, guard=guard)


# Other numbers of random bits.


@every_format
def test_other_seeds_and_steps_give_other_bits(formats: str) -> None:
    results = []
    for seed, t in ((7, 1), (8, 1), (7, 2)):
        scene = Scene(MODULES["baseline"], "momentum", [Spec((4000,), formats=FORMATS[formats])])
        scene.bind(1)
        rounding.set_seeds(scene.plan.seeds, seed, t, np.arange(1))
        scene.plan.run(scene.scalars(1))
        results.append([array.tobytes() for array in scene.arrays()])
    assert results[0][0] == results[1][0] == results[2][0]  # the weights of the first step
    assert len({slot for _, slot, *_ in results}) == 3


# The gate.

ZEROS = np.zeros(600, np.float32)
READ_ONLY = np.zeros(600, np.uint8)
READ_ONLY.flags.writeable = False
WRONG: dict[str, tuple[Any, str]] = {
    "codes of another dtype": (
        Codes(np.zeros(600, np.int8), np.zeros(3, "f4")),  # type: ignore[arg-type]
        r"codes must be uint8 of shape \(600,\), got int8 of shape \(600,\)",
    ),
    "codes of another shape": (
        Codes(np.zeros((2, 300), np.uint8), np.zeros(3, "f4")),
        r"codes must be uint8 of shape \(600,\), got uint8 of shape \(2, 300\)",
    ),
    "read-only codes": (Codes(READ_ONLY, np.zeros(3, "f4")), "codes: array must be writable"),
    "strided codes": (
        Codes(np.zeros(1200, np.uint8)[::2], np.zeros(3, "f4")),
        "codes: array must be C-contiguous",
    ),
    "too few scales": (
        Codes(np.zeros(600, np.uint8), np.zeros(2, "f4")),
        r"scales: must be float32 of shape \(3,\), got float32 of shape \(2,\)",
    ),
    "scales of another dtype": (
        Codes(np.zeros(600, np.uint8), np.zeros(3)),  # type: ignore[arg-type]
        r"scales: must be float32 of shape \(3,\), got float64",
    ),
    "codes that are the scales": (
        Codes(ZEROS.view(np.uint8)[:600], ZEROS[:3]),
        "and test: slot 0 of w must not share memory",
    ),
    "bfloat16 of another shape": (np.zeros(599, BFLOAT16), r"must have shape \(600,\), got \(599,\)"),
    "strided bfloat16": (np.zeros(1200, BFLOAT16)[::2], "array must be C-contiguous"),
    "float16": (np.zeros(600, np.float16), "dtype must be float32 or float64, got float16"),
    "a list": ([0.0] * 600, "dtype must be float32 or float64, got list"),
}


@pytest.mark.parametrize("isa", [*MODULES, "reference"])
@pytest.mark.parametrize("what", WRONG)
def test_slots_that_do_not_fit_are_refused(what: str, isa: str) -> None:
    module = MODULES.get(isa, reference)
    slot, error = WRONG[what]
    with pytest.raises((TypeError, ValueError), match=f"test: slot 0 of w.*{error}"):
        module.Plan("test", module.RULES["momentum"], ["w"], [np.zeros(600, "f4")], [[slot]], [0])


@pytest.mark.parametrize("isa", [*MODULES, "reference"])
@pytest.mark.parametrize("of", ["codes", "scales"])
def test_memory_of_slots_is_no_gradient(of: str, isa: str) -> None:
    module = MODULES.get(isa, reference)
    slot = Codes(np.zeros(256 * 256, np.uint8), np.zeros(256, np.float32))
    plan = module.Plan("test", module.RULES["momentum"], ["w"], [np.zeros(65536, "f4")], [[slot]], [0])
    plan.bind([np.zeros(65536, "f4")])
    inside = slot.codes[:512].view("f4")[:1] if of == "codes" else slot.scales[7:8]
    with pytest.raises(ValueError, match="gradient of w: must not share memory with test: slot 0 of w"):
        plan.bind([np.lib.stride_tricks.as_strided(inside, (65536,), (4,), writeable=False)])


@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_rows_with_parts_of_groups_are_refused(isa: str) -> None:
    module = MODULES.get(isa, reference)
    for width, fits in ((255, False), (512, True), (1, False), (0, True)):
        w = np.zeros((4, width), np.float32)
        slot = Codes(np.zeros(w.shape, np.uint8), np.zeros(-(-w.size // 256), np.float32))
        plan = module.Plan("test", module.RULES["momentum"], ["w"], [w], [[slot]], [0])
        gradient = fv.IndexedSlices(np.ones((2, width), np.float32), [0, 2])
        if fits:
            assert plan.bind([gradient]) == 1
            continue
        with pytest.raises(ValueError, match=f"gradient of w: .*rows must have a multiple of 256.*got {width}"):
            plan.bind([gradient])
        assert not w.any()
        assert not slot.codes.any()
