"""What plans sum before an update, and what an update makes of that: the same bits everywhere, and right."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvar import kernels
from fastvar.kernels import reference
from tests.support.cases import RULE_CASES, assert_same_bits

MODULES = {isa: kernels.load(isa)[1] for isa in kernels.supported()}
COMPARED = [*itertools.product(MODULES.values(), (1, 2, 3))]
SIZES = [5, 0, 1024, 3001, 40_000, 300]
ABSENT = 5  # the variable that has no gradient
STAGES = {"scale": 0.3, "l2": 0.07, "l1": 0.013, "clip": 0.7, "limit": 0.11}
AFTER = {"size": 0.6, "step": -0.3, "decay": 0.02, "low": 0.0, "high": 0.5}
SPECIAL = [np.nan, np.inf, -np.inf, 1e-40, 3e38, -0.0, 5e-324]
every_rule = pytest.mark.parametrize("rule", sorted(kernels.RULES))
every_dtype = pytest.mark.parametrize("dtype", ["f4", "f8"])


class Scene:
    """A plan of one rule, the same whenever it is made; `gradients` are in the other dtype if `mixed`."""

    def __init__(self, module: Any, rule: str, dtype: str, special: bool = False, **options: Any) -> None:
        rng = np.random.default_rng(1)
        self.rule, slots = rule, reference.RULES[rule].slots
        every: list[Any] = [("weights", "weights"), ("direction", "gradient"), ("direction", "direction")]
        every = [*every, (len(slots) - 1,)] if slots else every
        made = [[rng.standard_normal(n).astype(dtype) for n in SIZES] for _ in range(4 + len(slots))]
        if special:
            for arrays in made:
                for a in arrays:
                    with np.errstate(over="ignore"):
                        a[...] = np.where(rng.random(a.size) < 0.01, rng.choice(SPECIAL, a.size), a)
        self.w, self.averages, self.gradients, self.directions, *of_slots = made
        self.slots = [[np.abs(s[i]) for s in of_slots] for i in range(len(SIZES))]
        kept = options.pop("kept", False)
        self.plan = module.Plan(
            "test",
            [module.RULES[rule]] * 2,
            [str(i) for i in range(len(SIZES))],
            self.w,
            self.slots,
            [i % 2 for i in range(len(SIZES))],
            self.averages if options.pop("average", False) else None,
            [d if i % 3 else None for i, d in enumerate(self.directions)] if kept else None,
            sums=[every, every[:1]],
            **options,
        )

    def bind(self, stages: dict[str, float]) -> None:
        for name, value in stages.items():
            self.plan.stages[name] = value
        self.plan.bind([None if i == ABSENT else g for i, g in enumerate(self.gradients)])

    @property
    def scalars(self) -> list[Any]:
        return [RULE_CASES[self.rule].scalars(t) for t in (2, 5)]

    @property
    def arrays(self) -> list[Any]:
        return [*self.w, *self.averages, *self.gradients, *self.directions, *itertools.chain(*self.slots)]


def assert_all_equal(actual: list[Any], expected: list[Any]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


@every_rule
@every_dtype
def test_sums_equal_reference(rule: str, dtype: str) -> None:
    """They change nothing but the directions that are kept."""
    for special, kept, stages, scale in ((0, 0, {}, 1.0), (1, 1, STAGES, 1.0), (0, 1, {"size": 0.6}, 2.0**-600)):
        expected = Scene(reference, rule, dtype, bool(special), kept=kept)
        before = [a.copy() for a in expected.arrays]
        expected.bind(stages)
        wanted = expected.plan.sums(expected.scalars, 1, scale)
        for module, threads in COMPARED:
            scene = Scene(module, rule, dtype, bool(special), kept=kept)
            scene.bind(stages)
            assert_same_bits(scene.plan.sums(scene.scalars, threads, scale), wanted)
            assert_all_equal(scene.arrays, expected.arrays)
            if not kept:
                assert_all_equal(scene.arrays, before)


@every_dtype
def test_prodigy_measures_the_sum_of_gradients_that_it_then_keeps(dtype: str) -> None:
    for module in (reference, *MODULES.values()):
        scene = Scene(module, "prodigy", dtype)
        scene.bind({"scale": 0.5})
        of_directions = scene.plan.sums(scene.scalars)[:, 2]
        scene.plan.run(scene.scalars)
        for i, (total, *_) in enumerate(scene.slots):
            wanted = np.square(total.astype("f8")).sum() if i % 2 == 0 and i != ABSENT else 0.0
            np.testing.assert_allclose(of_directions[i], wanted, rtol=1e-12)


@every_dtype
def test_sums_are_sums(dtype: str) -> None:
    for module in (reference, *MODULES.values()):
        scene = Scene(module, "momentum", dtype)
        scene.bind({"scale": 0.5})
        keep, take, scale_m, scale_g = (np.dtype(dtype).type(c) for c in scene.scalars[0])
        sums = scene.plan.sums(scene.scalars)
        for i, (w, g, (m,)) in enumerate(zip(scene.w, scene.gradients, scene.slots, strict=True)):
            x = g * np.dtype(dtype).type(0.5)
            slot = keep * m + take * x
            d = scale_m * slot + scale_g * x
            of = [(w, w), (d, x), (d, d), (np.abs(slot), np.ones_like(w))] if i % 2 == 0 else [(w, w)]
            wanted = [float(np.dot(a.astype("f8"), b.astype("f8"))) for a, b in of] + [0.0] * (4 - len(of))
            wanted = wanted if i != ABSENT else [0.0] * 4
            np.testing.assert_allclose(sums[i], wanted, rtol=1e-9, atol=1e-12)


def test_of_a_variable_without_a_gradient_slots_are_summed() -> None:
    for module in (reference, *MODULES.values()):
        slot, w = np.linspace(-1, 1, 3000), np.ones(3000)
        plan = module.Plan("test", module.RULES["momentum"], ["a"], [w], [[slot]], [0], sums=[[(0,), (0, 0)]])
        plan.bind([None])
        np.testing.assert_allclose(plan.sums([(0.9, 0.1, 1.0, 0.0)]), [[np.abs(slot).sum(), slot @ slot]])


@every_rule
@every_dtype
@pytest.mark.parametrize("stages", [{}, {**STAGES, **AFTER}], ids=["raw", "staged"])
def test_directions_that_weights_take_equal_reference(rule: str, dtype: str, stages: dict[str, float]) -> None:
    for special, kept, average in itertools.product((False, True), repeat=3):
        options: Any = {"kept": kept, "average": average, "direct": [True, False]}
        expected = Scene(reference, rule, dtype, special, **options)
        expected.bind(stages)
        expected.plan.run(expected.scalars)
        for module, threads in COMPARED:
            scene = Scene(module, rule, dtype, special, **options)
            scene.bind(stages)
            scene.plan.run(scene.scalars, threads)
            assert_all_equal(scene.arrays, expected.arrays)


@pytest.mark.parametrize("rule", ["gradient_descent", "momentum", "adam"])
def test_weights_take_what_the_rule_adds_to_zeros(rule: str) -> None:
    for module in (reference, *MODULES.values()):
        direct, plain = Scene(module, rule, "f8", direct=[True, True]), Scene(module, rule, "f8")
        before = [w.copy() for w in direct.w]
        for w in plain.w:
            w[...] = 0
        for scene in (direct, plain):
            scene.bind({"step": 0.25})
            scene.plan.run(scene.scalars)
        for i, (w, old, d) in enumerate(zip(direct.w, before, plain.w, strict=True)):
            assert_same_bits(w, old + 0.25 * d if i != ABSENT else old)


SHAPES: list[tuple[int, tuple[int, int] | None]] = [
    (7 * 5, (7, 5)),
    (0, (3, 0)),
    (3 * 4 * 33, (4, 33)),
    (3000, (3000, 1)),
    (40_000, (20_000, 1)),
    (2 * 100 * 16, (100, 16)),
    (3 * 5001, (3, 5001)),
    (300 * 260, (300, 260)),
    (9, None),
    (1, (1, 1)),
]


class Matrices:
    """A plan of gradient descent on matrices of several shapes."""

    def __init__(self, module: Any, dtype: str, rows: tuple[bool, ...], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.w, self.gradients = ([rng.standard_normal(n).astype(dtype) for n, _ in SHAPES] for _ in range(2))
        names, shapes = [str(i) for i in range(len(SHAPES))], [shape for _, shape in SHAPES]
        zeros, slots = [0] * len(SHAPES), [()] * len(SHAPES)
        matrices = [(shapes, each) for each in rows]
        self.plan = module.Plan(
            "test", module.RULES["gradient_descent"], names, self.w, slots, zeros, matrices=matrices
        )
        for units in self.plan.units:
            units.by_row[...] = rng.standard_normal(units.by_row.shape)
            units.by_column[...] = rng.standard_normal(units.by_column.shape)
            units.most[...] = rng.uniform(0.25, 1, units.most.shape)
        self.plan.stages["limit"] = 1.5
        self.plan.bind(self.gradients)


@settings(max_examples=20)
@given(
    rows=st.sampled_from([(False,), (True,), (False, True)]),
    dtype=st.sampled_from(["f4", "f8"]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1.0, 2.0**-600]),
)
def test_sums_of_rows_and_columns_equal_reference(
    rows: tuple[bool, ...], dtype: str, seed: int, scale: float
) -> None:
    expected = Matrices(reference, dtype, rows, seed)
    every = [*itertools.product(range(len(rows)), (False, True))]
    wanted = [expected.plan.unit_sums(k, weights, 1, scale) for k, weights in every]
    expected.plan.run([(0.5,)])
    for module, threads in COMPARED:
        scene = Matrices(module, dtype, rows, seed)
        for (k, weights), sums in zip(every, wanted, strict=True):
            assert_all_equal(list(scene.plan.unit_sums(k, weights, threads, scale)), list(sums))
        scene.plan.run([(0.5,)], threads)
        assert_all_equal(scene.w, expected.w)


@every_dtype
def test_factors_and_sums_are_those_of_rows_and_columns(dtype: str) -> None:
    for module in (reference, *MODULES.values()):
        scene = Matrices(module, dtype, (True,))
        before, (units,) = [w.copy() for w in scene.w], scene.plan.units
        rows, columns = scene.plan.unit_sums(0)
        scene.plan.run([(1.0,)])
        for i, (size, shape) in enumerate(SHAPES):
            if shape is None or not size:
                continue
            g = np.clip(scene.gradients[i], -1.5, 1.5).reshape(-1, *shape)
            squares = g.astype("f8") ** 2
            np.testing.assert_allclose(units.rows_of(rows, i), squares.sum(2).reshape(-1), rtol=1e-12)
            np.testing.assert_allclose(units.columns_of(columns, i), squares.sum(1).reshape(-1), rtol=1e-12)
            by_row = units.rows_of(units.by_row, i).reshape(-1, shape[0], 1)
            by_column = units.columns_of(units.by_column, i).reshape(-1, 1, shape[1])
            moved = before[i].reshape(g.shape) - g * np.minimum(by_row * by_column, units.most[i])
            np.testing.assert_allclose(scene.w[i], moved.reshape(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["by_row", "by_column", "most", "patches", "shapes", "length"])
def test_what_compiled_code_reads_of_units_cannot_be_replaced(name: str) -> None:
    for module in (reference, *MODULES.values()):
        (units,) = Matrices(module, "f4", (True,)).plan.units
        with pytest.raises(AttributeError, match=f"{name}: write into the arrays"):
            setattr(units, name, np.ones(1))


BAD: list[dict[str, Any]] = [
    {"sums": [[("weights",)]] * 3},
    {"sums": [[("nothing",)]]},
    {"sums": [[(1,)]]},
    {"sums": [[(-1,)]]},
    {"slots": [[np.ones(3)] * 2]},
    {"slots": [[np.ones(3) for _ in range(9)]], "sums": [[(0,)]]},
    {"sums": [[()]]},
    {"sums": [["weights"]]},
    {"sums": [[("weights", "weights", "weights")]]},
    {"sums": [[("weights",)] * 5]},
    {"sums": 3},
    {"direct": [True] * 2},
    {"direct": 3},
    {"matrices": [([(3, 2)], True)]},
    {"matrices": [([(0, 3)], True)]},
    {"matrices": [([(3, -1)], True)]},
    {"matrices": [([(2**40, 2**40)], True)]},
    {"matrices": [([None, None], True)]},
    {"matrices": [([(3, 1)], True)] * 3},
    {"matrices": [3]},
    {"directions": [np.ones(2)]},
    {"directions": [3]},
]


@pytest.mark.parametrize("isa", [*MODULES, "reference"])
@pytest.mark.parametrize("changes", BAD, ids=lambda row: f"{row!r:.60}")
def test_wrong_parts_are_refused(isa: str, changes: dict[str, Any]) -> None:
    module = MODULES.get(isa, reference)
    given = {"slots": [[np.ones(3)]], **changes}
    with pytest.raises((TypeError, ValueError)):
        module.Plan("test", module.RULES["momentum"], ["a"], [np.ones(3)], groups=[0], **given)


@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_sums_need_gradients_and_scalars(isa: str) -> None:
    module = MODULES.get(isa, reference)
    plan = module.Plan(
        "test",
        module.RULES["gradient_descent"],
        ["a"],
        [np.ones(3)],
        [[]],
        [0],
        sums=[[("gradient",)]],
        matrices=[([(3, 1)], True)],
    )
    for ask in (lambda: plan.sums([(1.0,)]), lambda: plan.unit_sums(0)):
        with pytest.raises(RuntimeError, match="bind gradients first"):
            ask()
    plan.bind([np.ones(3)])
    for scalars in ([], [()], [(1.0, 2.0)]):
        with pytest.raises(ValueError, match="scalars"):
            plan.sums(scalars)
    for k in (-1, 1):
        with pytest.raises(IndexError, match="matrices"):
            plan.unit_sums(k)
