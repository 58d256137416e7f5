"""Guarded runs equal unguarded ones, or are undone. The oracle is the reference in NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar import kernels
from fastvar.kernels import reference
from tests.support.cases import RULE_CASES, assert_same_bits

MODULES = {isa: kernels.load(isa)[1] for isa in kernels.supported()}
COMPARED = [*itertools.product(MODULES.values(), (1, 3))]
SHAPES = [(5,), (), (0, 3), (1024,), (300, 131), (257,)]  # in rows of 3 tasks
STAGES = {"scale": 0.3, "l2": 0.07, "l1": 0.013, "clip": 0.7, "limit": 0.11, "decay": 0.01, "average": 0.9}
SPOILT = {  # faults: the variable, its element, and the gradient there
    "nothing": [],
    "a gradient": [(3, 1000, np.nan)],
    "a gradient of one element": [(1, 0, np.inf)],
    "gradients": [(0, 0, -np.inf), (4, 39_299, np.nan)],
    "a weight": [(4, 20_000, 3e38)],
    "a weight and a gradient": [(4, 16_384, 3e38), (5, 256, np.inf)],
}
rng = np.random.default_rng


class Scene:
    """All arrays of a plan of one rule; they are the same every time."""

    def __init__(
        self, module: Any, rule: str, dtype: str, stages: dict[str, float], zero: bool, directed: bool, what: str
    ) -> None:
        r = rng(1)
        self.slots = [
            [np.asarray(np.abs(r.standard_normal(s)), dtype) for _ in range(len(reference.RULES[rule].slots))]
            for s in SHAPES
        ]
        self.w, self.averages, self.grads = (
            [np.asarray(r.standard_normal(s), dtype) for s in SHAPES] for _ in range(3)
        )
        names = [str(i) for i in range(len(SHAPES))]
        groups = [0] * len(SHAPES)
        averages = self.averages if "average" in stages else None
        self.plan = module.Plan(
            "test",
            module.RULES[rule],
            names,
            self.w,
            self.slots,
            groups,
            averages,
            direct=[directed],
        )
        for name, value in stages.items():
            self.plan.stages[name] = value
        for i, at, value in SPOILT[what]:
            of = self.grads[i] if value != 3e38 else self.w[i]
            of.reshape(-1)[at] = value if value != 3e38 else np.finfo(dtype).max
            if value == 3e38:
                self.grads[i].reshape(-1)[at] = -np.finfo(dtype).max
                for slot in self.slots[i]:
                    slot.reshape(-1)[at] = -np.finfo(dtype).max if not slot.any() else np.finfo(dtype).max
        self.plan.bind([None if i == 2 else g for i, g in enumerate(self.grads)], zero)
        self.scalars, self.zero = RULE_CASES[rule].scalars(3), zero

    @property
    def arrays(self) -> list[Any]:
        return [*self.w, *itertools.chain(*self.slots), *self.averages, *self.grads]

    def run(self, threads: int = 1, guard: bool = True, agree: Any = None) -> list[tuple[int, bool]]:
        count = [7]
        found = self.plan.run([self.scalars], threads, count, None, guard, agree)
        assert count == [7 if found else 8]
        return found


@pytest.mark.parametrize("rule", sorted(kernels.RULES))
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("stages", [{}, STAGES], ids=["raw", "staged"])
@pytest.mark.parametrize("what", SPOILT)
def test_guarded_runs_equal_reference(rule: str, dtype: str, stages: dict[str, float], what: str) -> None:
    every = ((False, False), (True, False), (False, True))
    for zero, directed in every if what in ("nothing", "a weight and a gradient") else every[1:2]:
        options: Any = (rule, dtype, stages, zero, directed, what)
        before, expected = Scene(reference, *options), Scene(reference, *options)
        wanted = expected.run()
        by_gradient = {i for i, _, value in SPOILT[what] if value != 3e38}
        assert {i for i, of_gradient in wanted if of_gradient} == by_gradient
        for module, threads in COMPARED:
            scene = Scene(module, *options)
            assert scene.run(threads) == wanted
            for a, e, b in zip(scene.arrays, expected.arrays, before.arrays, strict=True):
                assert_same_bits(a, b if wanted else e)
        unguarded = Scene(reference, *options)
        unguarded.run(guard=False)
        for a, e in zip(unguarded.arrays, expected.arrays, strict=True):
            if not wanted:
                assert_same_bits(a, e)


@pytest.mark.parametrize(("module", "threads"), [(reference, 1), *COMPARED])
@pytest.mark.parametrize("what", ["nothing", "a gradient"])
@pytest.mark.parametrize("others", [[], [(4, True)]])
def test_others_have_their_say(module: Any, threads: int, what: str, others: list[tuple[int, bool]]) -> None:
    """A run that some others refuse is undone. They are asked once, and told what has been found here."""
    options: Any = ("adam", "f4", STAGES, False, False, what)
    before, after, scene = (Scene(module, *options) for _ in range(3))
    found, asked = after.run(threads), []

    def agree(mine: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
        asked.append(mine)
        return sorted({*mine, *others})

    assert scene.run(threads, True, agree) == sorted({*found, *others})
    assert asked == [found]
    for a, e in zip(scene.arrays, (before if found or others else after).arrays, strict=True):
        assert_same_bits(a, e)


@pytest.mark.parametrize(("module", "threads"), [(reference, 1), *COMPARED])
def test_others_that_cannot_be_asked(module: Any, threads: int) -> None:
    before, scene = (Scene(module, "adam", "f4", STAGES, False, False, "nothing") for _ in range(2))
    with pytest.raises(ConnectionError):
        scene.run(threads, True, _unreachable)
    for a, e in zip(scene.arrays, before.arrays, strict=True):
        assert_same_bits(a, e)
    with pytest.raises(RuntimeError, match="bind gradients first"):
        scene.run(threads)


def _unreachable(found: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    raise ConnectionError


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("spoil", [False, True])
def test_rows_and_what_does_not_fit_the_cache(large: bool, spoil: bool) -> None:
    n, width = (40_001, 29) if large else (1001, 29)
    rows = rng(2).permutation(n)[: n // 2]
    values = rng(3).standard_normal((len(rows), width)).astype("f4")
    dense = rng(4).standard_normal((n, width)).astype("f4")
    if spoil:
        values[-1, -1] = dense[-1, 3] = np.inf
    results = []
    for module, threads in [(reference, 1), *COMPARED]:
        w = [np.full((n, width), 0.5, "f4") for _ in range(2)]
        slots = [[np.full((n, width), 0.25, "f4") for _ in range(2)] for _ in range(2)]
        plan = module.Plan("test", module.RULES["adam"], ["table", "kernel"], w, slots, [0, 0])
        for t in range(3):
            plan.bind([fv.IndexedSlices(values, rows), dense])
            found = plan.run([RULE_CASES["adam"].scalars(t + 1)], threads, None, None, True)
            assert found == ([(0, True), (1, True)] if spoil else [])
        results.append([*w, *itertools.chain(*slots)])
        assert spoil == (w[0] == 0.5).all()
    for arrays in results[1:]:
        for a, e in zip(arrays, results[0], strict=True):
            assert_same_bits(a, e)
