"""Plans with a rule for each group, and commits; copies."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastvar as fv
from fastvar import kernels
from fastvar.kernels import reference
from tests.support.cases import RULE_CASES, assert_same_bits

MODULES = {isa: kernels.load(isa)[1] for isa in kernels.supported()}
COMPARED = [*itertools.product(MODULES.values(), (1, 2, 3))]
SIZES = [5, 0, 1024, 3001, 40_000]
STAGES = {"scale": 0.3, "l2": 0.07, "l1": 0.013, "clip": 0.7, "limit": 0.11}


@pytest.mark.parametrize("module", MODULES.values(), ids=lambda m: m.__name__)
def test_make_sanitize_tests_the_sanitized_build(module: Any) -> None:
    if module is not reference:
        assert (b"__asan_init" in Path(module.__file__).read_bytes()) == ("FASTVAR_SANITIZE" in os.environ)


def arrays(seed: int, dtype: str, count: int) -> list[list[Any]]:
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(n).astype(dtype) for n in SIZES] for _ in range(count)]


def test_groups_may_have_rules_of_their_own() -> None:
    def run(module: Any, rules: list[str], groups: list[int], threads: int) -> list[Any]:
        w, g, m, v = arrays(3, "f4", 4)
        taken = [[m[i], np.abs(v[i])][: len(reference.RULES[rules[k]].slots)] for i, k in enumerate(groups)]
        names = [str(i) for i in range(len(w))]
        plan = module.Plan("test", [module.RULES[r] for r in rules], names, w, taken, groups)
        plan.bind(g)
        plan.run([RULE_CASES[r].scalars(3) for r in rules], threads)
        return w

    rules = ["momentum", "adam", "gradient_descent"]
    groups = [0, 1, 2, 1, 0]
    alone = {rule: run(reference, [rule], [0] * 5, 1) for rule in rules}
    for module, threads in [(reference, 1), *COMPARED]:
        for i, actual in enumerate(run(module, rules, groups, threads)):
            assert_same_bits(actual, alone[rules[groups[i]]][i])


@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_commits_happen_with_the_run_or_not_at_all(isa: str) -> None:
    module = MODULES.get(isa, reference)
    w, g = np.ones(3), np.ones(3)
    plan = module.Plan("test", module.RULES["gradient_descent"], ["w"], [w], [()], [0])
    kept, count = np.array(1.0), [0]
    for bad in (np.array(1.0, "f4"), np.ones(2)):
        plan.bind([g])
        with pytest.raises((TypeError, ValueError)):
            plan.run([(1.0,)], 1, count, [(kept, np.array(5.0)), (kept, bad)])
    assert (w.tolist(), float(kept), count) == ([1, 1, 1], 1.0, [0])
    plan.bind([g])
    plan.run([(1.0,)], 1, count, [(kept, np.array(5.0))])
    assert (w.tolist(), float(kept), count) == ([0, 0, 0], 5.0, [1])


BAD_RULES: list[Any] = [[], ["adam"], None, "a", [None], 3]


@pytest.mark.parametrize("isa", MODULES)
@pytest.mark.parametrize("rule", BAD_RULES)
def test_wrong_rules_are_refused(isa: str, rule: Any) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError)):
        MODULES[isa].Plan("test", rule, ["w"], [np.ones(3)], [()], [0])


@pytest.mark.parametrize("size", [0, 1, 4095, 32 * 1024 - 1, 32 * 1024, 70_001])
@pytest.mark.parametrize("dtype", ["f4", "f8", "?", "<u2", "c16", ml_dtypes.bfloat16, "u1,f4"])
def test_copies_are_whole_on_any_number_of_threads(size: int, dtype: Any) -> None:
    bits = np.random.default_rng(1).integers(0, 256, size * np.dtype(dtype).itemsize).astype(np.uint8)
    source, short = bits.view(dtype), np.arange(5.0)
    for module in [*MODULES.values(), reference]:
        for threads in (1, 2, 3, 7):
            room, other = np.zeros(size + 2, dtype), np.zeros((1, 5))
            module.copy([other, room[1:-1]], [short, source], threads)
            assert room[1:-1].tobytes() == source.tobytes()
            assert not (room[0].tobytes() + room[-1].tobytes()).strip(b"\0")
            assert other.tolist() == [short.tolist()]
            for held in (bits, bits.tobytes()):  # what a file held
                room[...] = 0
                module.copy([room[1:-1]], [held], threads)
                assert room[1:-1].tobytes() == source.tobytes()
            module.copy([], [], threads)


@pytest.mark.parametrize("isa", [*MODULES, "reference"])
def test_copies_refuse_what_does_not_fit(isa: str) -> None:
    module, good, x = MODULES.get(isa, reference), np.zeros(4), np.ones(8)
    fixed, mixed = np.zeros(4), np.zeros(2, "f8,O")
    fixed.flags.writeable = False
    text = np.array(["a", "b"], np.dtypes.StringDType())
    wrong = (x[::2], x[:3], x[:4].astype("f4"), x[:4].astype(object), mixed, text)
    for source in (None, [1.0] * 4, *wrong, bytes(31), bytearray(32), memoryview(bytes(32))):
        with pytest.raises((TypeError, ValueError), match="copy: "):
            module.copy([np.zeros(4), good], [x[:4], source])
    for target in (None, bytes(32), fixed, x[::2], x[2:6], x[:4], x[3:7], x[:4].astype(object), mixed, text):
        with pytest.raises((TypeError, ValueError), match="copy: "):
            module.copy([good, target], [x[4:], x[:4]])
    for sources in ([], [x[:4], x[4:]], None):
        with pytest.raises((TypeError, ValueError)):
            module.copy([good], sources)
    assert not good.any()


@pytest.mark.parametrize(
    ("large", "make"),
    [
        (1_100_003, lambda: fv.optimizers.Adam(0.1, slot_dtype="bfloat16")),
        (1_100_003, lambda: fv.optimizers.Adam(0.1, slot_dtype="8bit", global_clipnorm=1.0)),
        (1_100_003, lambda: fv.optimizers.Lamb(0.1)),
        (9_000_001, lambda: fv.optimizers.SGD(0.1, nonfinite="skip")),  # tasks as long as they become
    ],
)
def test_large_tasks_change_no_bit(large: int, make: Any) -> None:
    sizes = [3, large, 70_001, 1024]
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal(n, np.float32) for n in sizes]
    before, expected = fv.get_num_threads(), None
    try:
        for threads in (1, 2, 3, 7):
            fv.set_num_threads(threads)
            variables = [fv.Variable(np.full(n, 0.5, np.float32)) for n in sizes]
            optimizer = make()
            for _ in range(2):
                optimizer.apply(gradients, variables)
            trained = [v.numpy().tobytes() for v in variables]
            expected = expected or trained
            assert trained == expected, threads
    finally:
        fv.set_num_threads(before)
