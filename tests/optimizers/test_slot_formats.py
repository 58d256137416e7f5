"""Slots in 16 and 8 bits change updates little. Rounded to nearest, they would change them much."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from bench.formats_error import EVERY, Arrays, Errors, Ours, Raised, digits, errors_of
from fastvar.optimizer.quantized import format_of

BOUNDS = {"bfloat16": 0.03, "8bit": 0.13}  # of the error of an update
SHAPE = (16, 64)


def fading() -> Iterator[Arrays]:
    """Yield gradients of very different sizes. After a while, half of them are smaller, so moments must decay."""
    rng = np.random.default_rng(0)
    size = 10 ** rng.uniform(-2, 0, SHAPE)
    for step in range(1200):
        yield [(size * rng.normal(size=SHAPE)).astype(np.float32)]
        if step == EVERY:
            size[:, ::2] *= 0.3


@pytest.fixture(scope="module")
def faded() -> dict[tuple[str, bool], Errors]:
    """The errors by format, and by whether it is rounded to nearest."""
    kinds: list[tuple[Any, bool]] = [(kind, nearest) for kind in BOUNDS for nearest in (False, True)]
    return dict(zip(kinds, errors_of([Ours(*kind, [SHAPE]) for kind in kinds], fading(), [SHAPE]), strict=True))


@pytest.mark.parametrize("kind", BOUNDS)
def test_moments_decay(faded: dict[tuple[str, bool], Errors], kind: str) -> None:
    stochastic, nearest = faded[kind, False], faded[kind, True]
    assert np.mean(stochastic.steps[-EVERY:]) < BOUNDS[kind] < np.mean(nearest.steps[-EVERY:])
    assert all(abs(bias) < 0.1 for bias in stochastic.biases[-1])
    assert min(nearest.biases[-1]) > 0.2


@pytest.mark.parametrize("kind", BOUNDS)
def test_updates_of_a_network_are_almost_those_of_float32(kind: Any) -> None:
    (errors,) = errors_of([Ours(kind)], digits(300))
    assert 0 < errors.whole < BOUNDS[kind]
    assert all(abs(resolved) < 0.1 for _, resolved in errors.biases)
    assert errors.zeros == 0


def test_small_second_moments_are_off_only_because_the_least_code_is_above_them() -> None:
    """As in float32, if these are raised to it."""
    rounded, raised = errors_of([Ours("8bit"), Raised()], digits(300))
    for (bias, _), (of_raised, _) in zip(rounded.biases, raised.biases, strict=True):
        assert of_raised > 0.05 > abs(bias - of_raised)


EXACT = [  # an optimizer of both kinds, options, and the formats of its slots
    ("AdamW", {"amsgrad": True}, ["8bit", "float32", "float32"]),
    ("Adam", {"amsgrad": True}, ["8bit", "float32", "float32"]),
    ("Adam", {}, ["8bit", "8bit"]),
    ("ASGD", {}, ["float32"]),
    ("Muon", {}, ["float32"]),
    ("RMSprop", {"centered": True}, ["float32", "8bit", "float32"]),
    ("RMSprop", {}, ["8bit"]),
    ("Rprop", {}, ["float32", "float32"]),
]


@pytest.mark.parametrize(("name", "options", "formats"), EXACT)
def test_slots_that_rounding_would_spoil_are_exact(name: str, options: Any, formats: list[str]) -> None:
    stored: Any = {"slot_dtype": "8bit", "slot_dtype_min_size": 0}
    w = fv.Variable(np.zeros((16, 32), np.float32))
    ours = getattr(fv.optimizers, name)(**options, **stored)
    ours.build([w])
    for optimizer in (ours, getattr(fv.torch, name)([w], **options, **stored)):
        assert [format_of(slot) for slot in optimizer.variables] == formats


def test_slots_become_exact_when_an_option_asks_for_it() -> None:
    w = fv.Variable(np.zeros(512, np.float32))
    adam = fv.optimizers.Adam(slot_dtype="8bit", slot_dtype_min_size=0)
    adam.apply([np.ones(512)], [w])
    velocity = adam.slot(w, "velocity").numpy()
    adam.amsgrad = True
    adam.apply([np.zeros(512)], [w])
    assert format_of(adam.slot(w, "velocity")) == "float32"
    np.testing.assert_allclose(adam.slot(w, "velocity").numpy(), 0.999 * velocity, rtol=1e-6)
