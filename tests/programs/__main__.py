"""Run random programs, and print a digest after each of their operations.

    FASTVAR_ISA=avx2 python -m tests.programs FIRST COUNT THREADS TRIPS

THREADS: the number of threads of all steps, or 0 for one that changes at random. TRIPS: 1 to pickle, copy, save
and restore in between. The digests depend on neither of these, and not on the instruction set.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from typing import Any

import numpy as np

import fastvar as fv
from tests.programs.operations import FAILURES, MAY_PASS, OTHERS, STEPS, TRIPS, World

LENGTH = 40


def fingerprint(world: World) -> dict[str, str]:
    """Return digests by name of everything that steps change. All NaNs are equal."""
    optimizer = world.optimizer
    if isinstance(optimizer, fv.optimizers.LossScaleOptimizer):
        optimizer.scale_loss(1.0)  # applies the change of the scale by the last step
    found = {f"{v.name}": digest(v.value) for v in world.variables}
    found |= {f"gradient of {v.name}": digest(v.grad) for v in world.variables}
    for name, of_slot in optimizer._state.slots.items():
        found |= {
            f"{name} of {v.name}": digest(slot.value)
            for v, slot in zip(world.order, of_slot, strict=True)
            if slot is not None
        }
    found |= {f"number {name}": str(value.tolist()) for name, value in optimizer._state.numbers.items()}
    return {**found, "steps": str(optimizer._steps)}


def digest(value: Any) -> str:
    if isinstance(value, fv.IndexedSlices):
        return digest(value.values) + digest(value.indices)
    array = np.array(value)
    if array.dtype.kind == "f":
        array[np.isnan(array)] = np.nan
    return hashlib.sha256(array.tobytes() if array.dtype != object else repr(value).encode()).hexdigest()[:12]


def run(seed: int, threads: int, trips: bool) -> list[str]:
    """Run a program. Return for each operation its name, its outcome, and a digest of the world."""
    world = World(np.random.default_rng([seed, 0]))
    lines = []
    for position in range(1, LENGTH + 1):
        rng = np.random.default_rng([seed, position])
        some, trip = int(rng.integers(1, 4)), TRIPS[rng.integers(len(TRIPS))]  # always drawn
        fv.set_num_threads(threads or some)
        if rng.random() < 0.15 and trips:
            before = fingerprint(world)
            trip(world)
            assert_same(before, fingerprint(world), f"{trip.__name__} before operation {position}")
        kinds = [STEPS, OTHERS, FAILURES][rng.choice(3, p=[0.55, 0.3, 0.15])]
        operation = kinds[rng.integers(len(kinds))]
        before = fingerprint(world)
        error = attempt(operation, world, rng)
        if error is not None:
            assert_same(before, fingerprint(world), f"operation {position}, {operation.__name__} ({error})")
        elif operation in FAILURES:
            assert operation in MAY_PASS, f"operation {position}, {operation.__name__}, did not fail"
        after = hashlib.sha256(repr(fingerprint(world)).encode()).hexdigest()[:12]
        lines.append(f"{position} {operation.__name__} {type(error).__name__ if error else 'done'} {after}")
    return lines


def attempt(operation: Any, world: World, rng: Any) -> Exception | None:
    try:
        operation(world, rng)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
        return error
    return None


def assert_same(before: dict[str, str], after: dict[str, str], what: str) -> None:
    changed = differing(before, after)
    assert not changed, f"{what}, changed {changed}"


def differing(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the names of values that have changed.

    New slots do not count. Nor do the numbers with which a failed step can be repeated
    (`TorchOptimizer._carried`), or gradients that the program has set before `step`.
    """
    notes = {
        n.removesuffix(end)
        for n in before
        for end in (" at", " next")
        if n.startswith("number ") and n.endswith(end)
    }
    notes |= {n + end for n in notes for end in (" at", " next")}
    return [
        name
        for name in before
        if after.get(name) != before[name] and name not in notes and not name.startswith("gradient of")
    ]


def main() -> None:
    first, count, threads, trips = map(int, sys.argv[1:])
    warnings.simplefilter("ignore")
    failures = []
    for seed in range(first, first + count):
        try:
            for line in run(seed, threads, bool(trips)):
                print(seed, line)
        except Exception as error:
            failures.append(f"program {seed}: {type(error).__name__}: {error}")
    sys.exit("\n".join(failures) or None)


if __name__ == "__main__":
    main()
