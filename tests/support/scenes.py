"""Plans and their arrays in all formats, to compare compiled runs with the NumPy twin."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import fastvar as fv
from fastvar import formats, kernels
from fastvar.formats import Codes, Master
from fastvar.kernels import reference, rounding
from fastvar.masters import split
from tests.support.cases import RULE_CASES, assert_same_bits
from tests.support.room import Room

MODULES = {isa: kernels.load(isa)[1] for isa in kernels.supported()}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STAGES = {"scale": 0.3, "l2": 0.07, "l1": 0.013, "clip": 0.7, "limit": 0.11, "size": 0.6, "decay": 0.021}
STAGED = {**STAGES, "average": 0.9, "overwrite": 1.0, "low": -0.23, "high": 0.37}
SPECIAL = [0.0, -0.0, 1e-40, -1e-44, 1e-310, np.inf, -np.inf, np.nan, 3e38, -1e300, 1.9e-34, 1e-20]
STEPS = 3
RNG = np.random.default_rng(1)
NUMBERS = RNG.standard_normal(1 << 16) * 10.0 ** RNG.integers(-6, 2, 1 << 16)
WITH_SPECIAL = np.where(RNG.random(1 << 16) < 0.01, RNG.choice(SPECIAL, 1 << 16), NUMBERS)


@functools.cache
def scalars(rule: str, t: int) -> tuple[float, ...]:
    return RULE_CASES[rule].scalars(t)


@dataclass(frozen=True)
class Spec:
    """One variable of a plan."""

    shape: tuple[int, ...]
    dtype: str = "f4"
    gradient: str | None = "f4"  # its dtype; None: no gradient
    rows: int | None = None  # of a sparse gradient; None: it is dense
    formats: Sequence[str] = ("native",)  # of its slots, repeated
    offset: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    bad: bool = False  # the gradient of the second step has a NaN
    weights: str = "native"  # their format; with "master", two arrays


class Scene:
    """The arrays of a plan and the plan, the same whenever they are made from the same arguments."""

    def __init__(
        self, module: Any, rule: str, specs: Sequence[Spec], special: bool = False, **options: Any
    ) -> None:
        self.rng, self.specs, self.rule = np.random.default_rng(1), specs, rule
        self.drawn = WITH_SPECIAL if special else NUMBERS
        count = len(reference.RULES[rule].slots)
        sizes = [math.prod(spec.shape) for spec in specs]
        self.room = Room(sum(8 * n * (3 + count) + 300 * (4 + 2 * count) for n in sizes) + 64)
        self.w = [self._weights(spec) for spec in specs]
        self.averages = [
            self._placed(spec, self._numbers(spec.shape), spec.dtype, 3) if "average" in spec.stages else None
            for spec in specs
        ]
        self.slots = [[self._slot(spec, k) for k in range(count)] for spec in specs]
        names, groups = [str(i) for i in range(len(specs))], [i % 2 for i in range(len(specs))]
        self.plan = module.Plan(
            "test", module.RULES[rule], names, self.w, self.slots, groups, self.averages, **options
        )
        for i, spec in enumerate(specs):
            for name, value in spec.stages.items():
                self.plan.stages[name][i] = value

    def _numbers(self, shape: tuple[int, ...]) -> Any:
        at = int(self.rng.integers(1 << 15))
        size = math.prod(shape)
        return np.resize(self.drawn[at : at + size], size).reshape(shape)  # repeated if they are too few

    def _placed(self, spec: Spec, values: Any, dtype: Any, k: int) -> Any:
        return self.room.placed(values, dtype, spec.offset * k + k * k)

    def _weights(self, spec: Spec) -> Any:
        values, name = self._numbers(spec.shape), spec.weights.removesuffix(" master")
        if name == "native":
            return self._placed(spec, values, spec.dtype, 1)
        weights = self._placed(spec, values, formats.dtype_of(name), 1)
        if name == spec.weights:
            return weights
        master = Master(weights, self._placed(spec, np.zeros(spec.shape), formats.OF_MASTERS[name], 2))
        with np.errstate(over="ignore"):
            split(master, values.astype("f4"))
        return master

    def _slot(self, spec: Spec, k: int) -> Any:
        values, stored = np.abs(self._numbers(spec.shape)), spec.formats[k % len(spec.formats)]
        if stored != "8bit":
            return self._placed(spec, values, BFLOAT16 if stored == "bfloat16" else spec.dtype, 5 + 2 * k)
        with np.errstate(over="ignore"):
            scales = (np.abs(self._numbers((-(-values.size // 256),))) * 1e-4).astype("f4")
        codes = self.rng.integers(0, 256, spec.shape)
        return Codes(self._placed(spec, codes, "u1", 6 + 2 * k), self._placed(spec, scales, "f4", 7 + 2 * k))

    def _gradient(self, spec: Spec, t: int) -> Any:
        if spec.gradient is None:
            return None
        shape = spec.shape if spec.rows is None else (spec.rows, *spec.shape[1:])
        with np.errstate(over="ignore"):
            values = self._numbers(shape).astype(spec.gradient)
        if spec.bad and t == 2:
            values.flat[-1] = np.nan
        return values if spec.rows is None else fv.IndexedSlices(values, self._rows(spec))

    def _rows(self, spec: Spec) -> Any:
        return self.rng.permutation(spec.shape[0])[: spec.rows]

    def scalars(self, t: int) -> list[Any]:
        return [scalars(self.rule, t + 4 * k) for k in range(max(1, min(len(self.specs), 2)))]

    def bind(self, t: int, zero: bool = False) -> list[Any]:
        gradients = [self._gradient(spec, t) for spec in self.specs]
        rounding.set_seeds(self.plan.seeds, 7, t, np.arange(len(self.specs)))
        self.plan.bind(gradients, zero)
        return [g for g in gradients if isinstance(g, np.ndarray)]

    def play(self, threads: int = 1, guard: bool = False, zero: bool = False) -> list[Any]:
        """Run some steps. Return what was found, and the gradients of the last."""
        found = []
        for t in range(1, STEPS + 1):
            gradients = self.bind(t, zero)
            found.append(self.plan.run(self.scalars(t), threads, None, None, guard))
        return [found, gradients]

    def arrays(self) -> Iterable[Any]:
        for stored in itertools.chain(self.w, self.averages, *self.slots):
            if stored is not None:
                yield from stored if isinstance(stored, tuple) else [stored]


def assert_equal(actual: Any, expected: Any, message: str) -> None:
    if actual.dtype.kind == "f":
        assert_same_bits(actual, expected, message)
    else:  # of bfloat16, all bits: it has one NaN
        assert actual.shape == expected.shape, message
        view = f"u{actual.itemsize}"
        np.testing.assert_array_equal(actual.view(view), expected.view(view), err_msg=message)


def assert_equals_twin(
    rule: str,
    specs: Sequence[Spec],
    threads: Sequence[int] = (1, 3),
    special: bool = False,
    options: dict[str, Any] | None = None,
    **how: bool,
) -> list[Any]:
    """Compare every instruction set and number of threads. Return what guarded runs of the twin found."""
    twin = Scene(reference, rule, specs, special, **options or {})
    found, gradients = twin.play(**how)
    for (isa, module), count in itertools.product(MODULES.items(), threads):
        scene = Scene(module, rule, specs, special, **options or {})
        its_found, its_gradients = scene.play(count, **how)
        assert its_found == found
        for actual, expected in zip([*scene.arrays(), *its_gradients], [*twin.arrays(), *gradients], strict=True):
            assert_equal(actual, expected, f"{isa}, {count} threads")
        scene.room.assert_guarded()
    return found  # type: ignore[no-any-return]
