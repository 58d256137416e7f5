"""The same bits everywhere: compiled rules and stages equal the NumPy reference exactly.

Compared over instruction sets, threads, sizes, alignments, stages, storage formats and special values. Splitting a
variable does not change its update.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvar as fv
from fastvar import kernels
from fastvar.kernels import reference
from fastvar.kernels.stages import BLOCK
from tests.support.cases import CASES, RULE_CASES, Case, assert_same_bits
from tests.support.room import Room

WIDTH = 16  # elements of the widest vector
SIZES = range(3 * WIDTH + 2)
OFFSETS = range(16)  # elements from a 64-byte boundary
STEPS = 2
# Values that are neither exact nor neutral show any other order or precision.
STAGES = {
    "scale": 0.3,
    "l2": 0.07,
    "l1": 0.013,
    "clip": 0.7,
    "limit": 0.11,
    "size": 0.6,
    "decay": 0.021,
    "overwrite": 1.0,
    "low": -0.23,
}
STAGED = {**STAGES, "average": 0.9, "high": 0.37}
SPECIAL = [0.0, -0.0, 1e-40, -1e-44, 1e-310, 5e-324, np.inf, -np.inf, np.nan, 3e38, -1e300, 1.9e-34, 1e-20]


@dataclass(frozen=True)
class Spec:
    """One variable of a plan: its size, the offsets of its arrays, and its stages."""

    size: int
    dtype: str = "f4"
    gradient: str | None = "f4"  # its storage format; None: no gradient
    offset: int = 0
    average: bool = False
    group: int = 0
    stages: dict[str, float] = field(default_factory=dict)


MODULES = {isa: kernels.load(isa)[1] for isa in kernels.supported()}
every_rule = pytest.mark.parametrize("rule", sorted(kernels.RULES))


def numbers(rng: np.random.Generator, size: int, special: bool) -> Any:
    values = rng.standard_normal(size) * 10.0 ** rng.integers(-3, 2, size)
    if special:
        values = np.where(rng.random(size) < 0.3, rng.choice(SPECIAL, size), values)
    return values


class Memory:
    """The arrays of a plan, filled from a seed: the same seed gives the same numbers."""

    def __init__(self, specs: Sequence[Spec], slots: int, seed: int, special: bool, aligned: bool) -> None:
        self.weights, self.slots, self.averages, self.gradients = [], [], [], []
        elements = (3 + slots) * sum(spec.size for spec in specs)
        drawn = numbers(np.random.default_rng(seed), elements, special)
        self.room = Room(8 * elements + 192 * (3 + slots) * len(specs) + 64)
        begin = 0
        for spec in specs:
            at = [0] * 9 if aligned else [spec.offset * k + k * k for k in (1, 3, 5, 7, 9, 11, 13, 15, 2)]
            end = begin + (3 + slots) * spec.size
            values = drawn[begin:end].reshape(3 + slots, spec.size)
            begin = end
            self.weights.append(self.room.placed(values[0], spec.dtype, at[0]))
            self.averages.append(self.room.placed(values[1], spec.dtype, at[1]) if spec.average else None)
            g = None if spec.gradient is None else self.room.placed(values[2], spec.gradient, at[2])
            self.gradients.append(g)
            own = (
                values[3:] if special else np.abs(values[3:])
            )  # no roots of negative numbers, as NaN would hide differences
            self.slots.append([self.room.placed(v, spec.dtype, at[3 + k]) for k, v in enumerate(own)])

    def arrays(self) -> Iterable[Any]:
        rows = zip(self.weights, self.averages, self.gradients, strict=True)
        yield from (a for row in [*rows, *self.slots] for a in row if a is not None)


def play(
    module: Any,
    rule: str,
    specs: Sequence[Spec],
    memory: Memory,
    threads: int = 1,
    zero: bool = False,
    scalars: Any = None,
) -> list[Any]:
    """Run `STEPS` steps; return the norms of the first, of each variable and of all."""
    scalars = scalars or RULE_CASES[rule].scalars
    groups = [spec.group for spec in specs]
    names = [str(i) for i in range(len(specs))]
    plan = module.Plan("test", module.RULES[rule], names, memory.weights, memory.slots, groups, memory.averages)
    for i, spec in enumerate(specs):
        for stage, value in spec.stages.items():
            plan.stages[stage][i] = value
    before = [None if g is None else g.copy() for g in memory.gradients]
    norms: list[Any] = []
    for t in range(1, STEPS + 1):
        for g, values in zip(memory.gradients, before, strict=True):
            if g is not None:
                g[...] = values
        plan.bind(memory.gradients, zero)
        if t == 1:
            norms = [plan.sums_of_squares(each, threads) for each in (True, False)]
            norms.append(plan.squares_of_blocks(threads))
            total = np.cumsum([0.0, *norms[-1]])[-1]  # in their order
            assert_same_bits(np.array([total]), norms[1])
        plan.run([scalars(t + 4 * k) for k in range(max(groups, default=0) + 1)], threads)
    return norms


def assert_equals_reference(
    rule: str,
    specs: Sequence[Spec],
    *,
    seed: int = 0,
    special: bool = False,
    threads: Sequence[int] = (1,),
    zero: bool = False,
    scalars: Any = None,
) -> None:
    """Compare every instruction set and number of threads with the reference."""
    slots = len(reference.RULES[rule].slots)
    twin = Memory(specs, slots, seed, special, aligned=True)
    expected_norms = play(reference, rule, specs, twin, zero=zero, scalars=scalars)
    for (isa, module), count in itertools.product(MODULES.items(), threads):
        compiled = Memory(specs, slots, seed, special, aligned=False)
        norms = play(module, rule, specs, compiled, count, zero, scalars)
        assert_same_bits(norms[0], expected_norms[0], f"{isa}: sums of squares of each")
        assert_same_bits(norms[1], expected_norms[1], f"{isa}: sum of all squares")
        for actual, expected in zip(compiled.arrays(), twin.arrays(), strict=True):
            assert_same_bits(actual, expected, f"{isa}, {count} threads")
        compiled.room.assert_guarded()


def every_stage_combination(size: int, rule: str) -> list[Spec]:
    """One variable for every subset of the stages, with and without average, in every pair of formats.

    Each rule gets a third of the subsets, and three rules together all of them: stages do not depend on rules.
    """
    third = sorted(kernels.RULES).index(rule) % 3
    specs = []
    flags = [[False, True]] * len(STAGES)
    formats = itertools.product(["f4", "f8"], ["f4", "f8"], [False, True])
    for dtype, gradient, average in formats:
        for k, chosen in enumerate(itertools.product(*flags)):
            stages = {name: STAGES[name] for name, on in zip(STAGES, chosen, strict=True) if on}
            stages |= {"average": 0.9} if k % 4 else {}
            stages |= {"high": 0.37} if k % 5 else {}
            if k % 3 == third or all(chosen):
                specs.append(Spec(size, dtype, gradient, k, average, k % 2, stages))
    return specs


@pytest.mark.parametrize("isa", kernels.ISAS)
def test_instruction_set_is_compared(isa: str) -> None:
    if isa not in MODULES:
        pytest.skip(f"this processor does not run {isa}; `make avx512` emulates one that does")


def test_every_rule_has_a_case() -> None:
    assert set(RULE_CASES) == set(kernels.RULES) == set(reference.RULES)
    for case in CASES:
        assert case.rule is None or case.make().rule() is kernels.RULES[case.rule]


@every_rule
@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("special", [False, True])
def test_every_small_size_at_every_alignment(rule: str, staged: bool, special: bool) -> None:
    stages = STAGED if staged else {}
    for dtype in ("f4", "f8"):
        base = Spec(0, dtype, dtype, average=staged, stages=stages)
        every = 3 if staged or special else 1  # all pairs once, without stages
        pairs = [(n, k) for n in SIZES for k in OFFSETS if (n + k + staged) % every == 0]
        specs = [replace(base, size=n, offset=k) for n, k in pairs]
        assert_equals_reference(rule, specs, special=special)


@every_rule
@pytest.mark.parametrize("special", [False, True])
def test_every_stage_combination(rule: str, special: bool) -> None:
    assert_equals_reference(rule, every_stage_combination(19, rule), special=special, zero=special)


@every_rule
@pytest.mark.parametrize("stages", [{}, STAGED], ids=["raw", "staged"])
def test_large_odd_sizes_on_threads(rule: str, stages: dict[str, float]) -> None:
    for dtype, gradient in (("f4", "f4"), ("f8", "f8"), ("f4", "f8")):
        base = Spec(0, dtype, gradient, average=bool(stages), stages=stages)
        sizes = [70_001, 0, 3, 33_001, 1, 1024, 16_385, 2047]
        specs = [replace(base, size=n, offset=k, group=k % 2) for k, n in enumerate(sizes)]
        assert_equals_reference(rule, specs, threads=(1, 2, 3), zero=bool(stages))


@pytest.mark.parametrize("stages", [{}, STAGED], ids=["raw", "staged"])
def test_steps_beyond_caches(stages: dict[str, float]) -> None:
    """There, rules run in parts, all by the same code."""
    base = Spec(0, average=bool(stages), stages=stages)
    specs = [replace(base, size=n, offset=k) for k, n in enumerate([2_800_001, 16_385, 5])]
    assert_equals_reference("adam", specs, threads=(3,), zero=bool(stages))


@pytest.mark.parametrize("case", [case for case in CASES if case.rule], ids=lambda case: case.id)
def test_scalars_of_every_case(case: Case) -> None:
    """Scalars that the other cases do not have: of the first updates, and of other hyperparameters."""
    specs = [Spec(n, dtype, dtype, offset=n, group=n % 5) for n in (5, 3, 16, 1031) for dtype in ("f4", "f8")]
    for special in (False, True):
        assert_equals_reference(str(case.rule), specs, special=special, scalars=case.scalars)


small = st.integers(0, 3 * WIDTH + 1)
large = st.sampled_from([1023, 1024, 1025, 4097, 16_383, 33_001, 70_001])
stage_values = st.fixed_dictionaries(
    {},
    optional={
        "scale": st.sampled_from([0.3, 1e-3, 2.0, 1e300, np.inf]),
        "l2": st.sampled_from([0.07, 1e-8, 1e-60, 1e60]),
        "l1": st.sampled_from([0.013, 1e-60, 1e60]),
        "clip": st.sampled_from([0.7, 0.0, 1 - 1e-12, 1e-60, np.nan]),
        "limit": st.sampled_from([0.11, 1e-60, 1e60]),
        "size": st.sampled_from([0.6, 0.0, 1e-60, 1e300, np.nan]),
        "decay": st.sampled_from([0.021, 1.0, 1e-60, 1e60]),
        "average": st.sampled_from([0.9, 1.0, 1e-60]),
        "overwrite": st.just(1.0),
        "low": st.sampled_from([0.0, -0.23, -1e60]),
        "high": st.sampled_from([0.0, 0.37, 1e60]),
    },
)
specs = st.builds(
    Spec,
    size=small | large,
    dtype=st.sampled_from(["f4", "f8"]),
    gradient=st.sampled_from(["f4", "f8", "f4", "f8", None]),
    offset=st.integers(0, 15),
    average=st.booleans(),
    group=st.integers(0, 2),
    stages=stage_values,
)


@every_rule
@settings(max_examples=15)
@given(
    specs=st.lists(specs, max_size=6),
    seed=st.integers(0, 2**32),
    special=st.booleans(),
    zero=st.booleans(),
)
def test_any_plan_equals_reference(rule: str, specs: list[Spec], seed: int, special: bool, zero: bool) -> None:
    specs = [replace(spec, group=spec.group % len(specs)) for spec in specs]  # no more than variables
    assert_equals_reference(rule, specs, seed=seed, special=special, threads=(1, 2, 3), zero=zero)


def split(memory: Memory, cuts: Sequence[int]) -> Memory:
    """Split the only variable of `memory` at `cuts`: return views of the parts."""
    parts = object.__new__(Memory)
    ends = [*cuts, memory.weights[0].size]
    ranges = [slice(lo, hi) for lo, hi in zip([0, *cuts], ends, strict=True)]
    parts.weights = [memory.weights[0][r] for r in ranges]
    parts.gradients = [memory.gradients[0][r] for r in ranges]
    parts.averages = [memory.averages[0][r] for r in ranges]
    parts.slots = [[slot[r] for slot in memory.slots[0]] for r in ranges]
    return parts


@every_rule
@settings(max_examples=8)
@given(
    size=st.sampled_from([5000, 70_001]),
    cuts=st.lists(st.integers(0, 5000) | st.sampled_from([0, BLOCK, 3 * BLOCK]), min_size=1, max_size=12).map(
        sorted
    ),
    threads=st.integers(1, 3),
    dtype=st.sampled_from(["f4", "f8"]),
)
def test_splitting_a_variable_changes_nothing(
    rule: str, size: int, cuts: list[int], threads: int, dtype: str
) -> None:
    spec = Spec(size, dtype, dtype, average=True, stages=STAGED)
    slots = len(reference.RULES[rule].slots)
    for module in MODULES.values():
        whole, parts = (Memory([spec], slots, 1, False, aligned=True) for _ in range(2))
        norms = play(module, rule, [spec], whole, threads)
        pieces = split(parts, cuts)
        part_specs = [replace(spec, size=w.size) for w in pieces.weights]
        part_norms = play(module, rule, part_specs, pieces, threads)
        if all(cut % BLOCK == 0 for cut in cuts):
            assert_same_bits(part_norms[1], norms[1], "global norm")
        for actual, expected in zip(parts.arrays(), whole.arrays(), strict=True):
            assert_same_bits(actual, expected)


@every_rule
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("gradient", ["f4", "f8"])
def test_nonzero_gradient_changes_every_weight(rule: str, dtype: str, gradient: str) -> None:
    for module, size in itertools.product(MODULES.values(), (*SIZES, 1025, 70_001)):
        memory = Memory([Spec(size, dtype, gradient)], len(reference.RULES[rule].slots), 3, False, aligned=True)
        optimizer = RULE_CASES[rule].make()
        start = fv.Variable(memory.weights[0], copy=False)
        for name, array in zip(optimizer.slots, memory.slots[0], strict=False):
            array[...] = optimizer.initial(name, start, optimizer)
        memory.gradients[0][...] = 0.5
        before = memory.weights[0].copy()
        play(module, rule, [Spec(size, dtype, gradient)], memory, threads=2)
        down = memory.weights[0] < before
        assert (memory.weights[0] != before if rule == "ftrl" else down).all()  # it forgets where it began
