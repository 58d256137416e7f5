"""Stochastic rounding is unbiased, and its random numbers are uniform and pairwise independent.

Seeds are fixed, so these tests pass or fail for good. With numbers that are really random, all checks of this file
together would fail with a probability below 1e-6: each has its share of it.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from fastvar import kernels
from fastvar.formats import GROUP, Codes
from fastvar.kernels import rounding
from fastvar.kernels.numpy_formats import decode_codes
from tests.support.cases import RULE_CASES

STEPS = 1024
GROUPS = 64
SHARE = 1e-8  # the probability with which a check would fail
SHIFTS = (30, 22, 16, 13)  # of pairs of bits: the first that decide, and the last of bfloat16 and of codes
ELEMENTS = np.arange(GROUPS) * 37 % (GROUP - 1)  # one of each group: their numbers are independent within a step


@functools.cache
def numbers(seed: int, variable: int, slot: int, more: int = 0) -> Any:
    """Return the random numbers of one element of each group, or of one that is `more` elements later, by step."""
    seeds = np.zeros(STEPS, rounding.SEEDS)
    rounding.set_seeds(seeds, seed, np.arange(1, STEPS + 1), variable)
    by_step = [rounding.random_bits(of, slot, GROUPS * GROUP).reshape(GROUPS, GROUP) for of in seeds]
    return np.array([of[np.arange(GROUPS), (ELEMENTS + more) % GROUP] for of in by_step])


def pairs(what: str) -> tuple[Any, Any]:
    """Return two arrays of random numbers; a pair of elements is independent of all others."""
    first = numbers(0, 0, 0)
    if what in ("groups", "steps"):
        return (first[:, ::2], _same_elements(first)) if what == "groups" else (first[::2], first[1::2])
    others = {
        "neighbours": (0, 0, 0, 1),
        "elements 64 apart": (0, 0, 0, 64),
        "slots": (0, 0, 1),
        "variables": (0, 1, 0),
        "variables far apart": (0, 1000, 0),
        "slots and variables": (0, 1, 1),
        "seeds": (1, 0, 0),
        "seeds far apart": (2**63, 0, 0),
    }
    return first, numbers(*others[what])


def _same_elements(first: Any) -> Any:
    """Return the numbers of the elements of `first[:, ::2]` in the groups after theirs."""
    seeds = np.zeros(STEPS, rounding.SEEDS)
    rounding.set_seeds(seeds, 0, np.arange(1, STEPS + 1), 0)
    of_groups = [rounding.random_bits(of, 0, GROUPS * GROUP).reshape(GROUPS, GROUP) for of in seeds]
    return np.array([of[np.arange(1, GROUPS, 2), ELEMENTS[::2]] for of in of_groups])


PAIRS = [
    "neighbours",
    "elements 64 apart",
    "groups",
    "steps",
    "slots",
    "variables",
    "variables far apart",
    "slots and variables",
    "seeds",
    "seeds far apart",
]


@pytest.mark.parametrize("what", PAIRS)
def test_numbers_are_pairwise_independent(what: str) -> None:
    """Two bits of each, anywhere among those that round: a table of 16 cells, with a chi-squared test."""
    a, b = pairs(what)
    for shift, other in itertools.product(SHIFTS, SHIFTS):
        cells = ((a >> np.uint32(shift) & 3) << 2) | (b >> np.uint32(other) & 3)
        assert stats.chisquare(np.bincount(cells.reshape(-1), minlength=16)).pvalue > SHARE / len(SHIFTS)


def test_numbers_are_uniform() -> None:
    for shift in (24, 16, 13):
        counts = np.bincount(numbers(0, 0, 0).reshape(-1) >> np.uint32(shift) & 255, minlength=256)
        assert stats.chisquare(counts).pvalue > SHARE


def test_seeds_and_steps_are_not_exchanged() -> None:
    seeds = np.zeros(100, rounding.SEEDS)
    rounding.set_seeds(seeds, 3, np.arange(100), np.arange(100)[::-1])
    every = {*seeds["shared"].tolist(), *seeds["own"].tolist()}
    for seed in range(4, 10):
        rounding.set_seeds(seeds, seed, np.arange(100), np.arange(100)[::-1])
        every |= {*seeds["shared"].tolist(), *seeds["own"].tolist()}
    assert len(every) == 7 * 200


# What is stored.

TRIALS = 2000
FORMATS = ["bfloat16", "8bit", "8bit signed"]


def chances() -> Any:
    """Return probabilities that are neither too small nor too large for a normal distribution of counts."""
    return np.random.default_rng(4).uniform(0.1, 0.9, 3 * GROUP)


def scene(stored: str) -> tuple[Any, Any, Any]:
    """Return numbers between two neighbours of a format, and these."""
    p, rng = chances(), np.random.default_rng(5)
    if stored == "bfloat16":
        lower = rng.integers(0x3F00, 0x4100, p.size) | np.where(rng.random(p.size) < 0.5, 0, 0x8000)
        below, above = (
            n.astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float64) for n in (lower, lower + 1)
        )
    else:
        # In groups of one sign, what is positive never becomes 0, so there the first code is no lower neighbour.
        first, last = (0, 126) if stored == "8bit signed" else (1, 254)
        lower = rng.integers(first, last, p.size).reshape(-1, GROUP)
        signs = np.sign(rng.standard_normal(lower.shape)) if stored == "8bit signed" else np.ones(lower.shape)
        lower[:, 0], p.reshape(-1, GROUP)[:, 0] = last, 1
        scales = np.float32([-0.3, -1.0, -700.0] if stored == "8bit signed" else [0.3, 1.0, 700.0])
        sign = np.where(signs < 0, 0, 128) if stored == "8bit signed" else 0
        below, above = (
            decode_codes(Codes(((lower + k) | sign).astype(np.uint8), scales)).reshape(-1).astype(np.float64)
            for k in (0, 1)
        )
    return (below + p * (above - below)).astype(np.float32), below, above


@functools.cache
def rounded_up(stored: str) -> Any:
    """Return whether each number was rounded away from 0 in each of many steps, and the probability of that."""
    x, below, above = scene(stored)
    slot: Any = np.zeros(x.size, ml_dtypes.bfloat16)
    if stored != "bfloat16":
        slot = Codes(np.zeros(x.size, np.uint8), np.zeros(x.size // GROUP, np.float32))
    rule, w = kernels.RULES["rprop"], np.zeros_like(x)
    plan = kernels.Plan("test", rule, ["w"], [w], [[slot, np.ones_like(x)]], [0])
    up = np.empty((TRIALS, x.size), bool)
    middle = (below + above) / 2
    for t in range(TRIALS):
        rounding.set_seeds(plan.seeds, 0, t + 1, np.arange(1))
        plan.bind([x])
        plan.run([RULE_CASES["rprop"].scalars(1)])
        value = decode_codes(slot) if isinstance(slot, Codes) else slot.astype(np.float32)
        up[t] = np.abs(value) > np.abs(middle)
        np.testing.assert_allclose(value, np.where(up[t], above, below), rtol=1e-6, atol=1e-6 * np.abs(x).max())
    return up, (x - below) / (above - below)


@pytest.mark.parametrize("stored", FORMATS)
def test_rounding_is_unbiased(stored: str) -> None:
    """No count of any element, and not the sum of all, is further from its mean than 7 standard deviations."""
    up, p = rounded_up(stored)
    drawn = p < 0.95  # the others have the last code
    up, p = up[:, drawn], p[drawn]
    z = (up.sum(0) - TRIALS * p) / np.sqrt(TRIALS * p * (1 - p))
    assert np.abs(z).max() < 7
    assert z.std() == pytest.approx(1, abs=0.2)
    total = (up - p).sum() / np.sqrt(TRIALS * (p * (1 - p)).sum())
    assert abs(total) < 7


@pytest.mark.parametrize("stored", FORMATS)
def test_rounding_is_uncorrelated(stored: str) -> None:
    """Over elements, groups and steps: sums of products of the deviations of pairs, over all steps."""
    up, p = rounded_up(stored)
    drawn = p < 0.95
    deviations = np.where(drawn, (up - p) / np.sqrt(np.where(drawn, p * (1 - p), 1)), 0)
    for lag in (1, 2, 16, 128, GROUP, 2 * GROUP):
        products = deviations[:, lag:] * deviations[:, :-lag]
        by_step = products.sum(1)  # these are independent
        assert abs(by_step.sum()) < 7 * np.sqrt((by_step**2).sum())
    for later in (1, 2, 7):
        by_step = (deviations[later:] * deviations[:-later]).sum(1)
        assert abs(by_step.sum()) < 7 * np.sqrt((by_step**2).sum())
