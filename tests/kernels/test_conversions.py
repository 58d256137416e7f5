"""Numbers in the formats of slots: every code, and floats of every exponent, beside ml_dtypes and plain formulas.

`FASTVAR_FLOATS=all` (`make soak`) takes all 2^32 floats once in place of about 2^19.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastvar import kernels
from fastvar.formats import GROUP, Codes
from fastvar.kernels import reference, rounding
from fastvar.kernels.numpy_formats import (
    LEAST,
    MOST_SIGNED,
    MOST_UNSIGNED,
    NEAREST,
    decode_codes,
    encode_bfloat16,
    encode_codes,
)
from tests.support.cases import RULE_CASES, assert_same_bits

MODULES = {isa: kernels.load(isa)[1] for isa in kernels.supported()}
ALL = os.environ.get("FASTVAR_FLOATS") == "all"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EVERY_CODE = np.arange(256, dtype=np.uint8)
TOWARDS_0, AWAY = np.uint32(0), np.uint32(0xFFFFFFFF)  # in place of random numbers
every_isa = pytest.mark.parametrize("isa", [*MODULES, "reference"])
both_dtypes = pytest.mark.parametrize("dtype", ["f4", "f8"])
signs = pytest.mark.parametrize("signed", [False, True], ids=["one sign", "both signs"])


def lower_bits() -> Iterator[Any]:
    """Yield lower 19 bits of floats in chunks: some, or all."""
    if ALL:
        yield from np.arange(1 << 19, dtype=np.uint32).reshape(-1, 1 << 5)
    else:
        some = np.random.default_rng(1).integers(0, 1 << 19, 61, np.uint32)
        yield np.array([0, 1, (1 << 19) - 1, *some], np.uint32)


def floats(lower: Any, signed: bool) -> Any:
    """Return all floats with these lower 19 bits, in groups of 16 octaves of one sign, or of 8 octaves of both."""
    k = np.arange(GROUP, dtype=np.uint32)
    within = (k >> 7 << 31) | ((k & 127) << 19) if signed else k << 19
    groups = np.arange(32, dtype=np.uint32) << (26 if signed else 27)
    return (groups[:, None, None] | lower[:, None] | within).reshape(-1).view(np.float32)


def seeds_of(t: int) -> Any:
    seeds = np.zeros(1, rounding.SEEDS)
    rounding.set_seeds(seeds, 3, t, np.arange(1))
    return seeds


def random_numbers(n: int, t: int = 1) -> Any:
    """Return the random numbers with which `stored` rounds."""
    return rounding.random_bits(seeds_of(t)[0], 0, n)


def stored(module: Any, x: Any, slot: Any, t: int = 1) -> Any:
    """Store numbers in a slot by a step of Rprop, which keeps its gradient."""
    w = np.zeros_like(x)
    plan = module.Plan("test", module.RULES["rprop"], ["w"], [w], [[slot, np.ones_like(x)]], [0])
    plan.seeds[...] = seeds_of(t)
    plan.bind([x])
    plan.run([RULE_CASES["rprop"].scalars(1)])
    return slot


def in_bfloat16(module: Any, x: Any, t: int = 1) -> Any:
    return stored(module, x, np.zeros(x.shape, BFLOAT16), t)


def in_codes(module: Any, x: Any, t: int = 1) -> Codes:
    empty = Codes(np.zeros(x.shape, np.uint8), np.zeros(-(-x.size // GROUP), np.float32))
    return stored(module, x, empty, t)  # type: ignore[no-any-return]


def bits(x: Any) -> Any:
    return x.view(f"u{x.itemsize}")


def module_of(isa: str) -> Any:
    return MODULES.get(isa, reference)


# bfloat16.


def test_every_bfloat16_stays() -> None:
    every = np.arange(1 << 16).astype(np.uint16).view(BFLOAT16)
    x = every.astype(np.float32)
    for random in (TOWARDS_0, NEAREST, AWAY):
        again = encode_bfloat16(x, random)
        np.testing.assert_array_equal(bits(again)[~np.isnan(x)], bits(every)[~np.isnan(x)])
        assert (bits(again)[np.isnan(x)] == 0x7FC0).all()
    for module in MODULES.values():
        np.testing.assert_array_equal(bits(in_bfloat16(module, x)), bits(again))


def test_every_float_is_rounded_to_a_neighbour_in_bfloat16() -> None:
    """Half in place of random numbers gives the nearest, as of ml_dtypes, but rounds halves away from 0."""
    for lower in lower_bits():
        x = floats(lower, False)
        finite, rest = np.isfinite(x), bits(x) & 0xFFFF
        down = bits(x) >> 16
        for isa, module in MODULES.items():
            ours = bits(in_bfloat16(module, x))
            np.testing.assert_array_equal(ours, bits(encode_bfloat16(x, random_numbers(x.size))), isa)
            up = ours[finite] != down[finite]
            assert (ours[finite] == down[finite] + up).all()
            assert not up[rest[finite] == 0].any()
        with np.errstate(invalid="ignore"):  # signaling NaNs
            nearest, theirs = encode_bfloat16(x, NEAREST), x.astype(BFLOAT16)
        same = np.where(rest == 0x8000, bits(nearest) - (bits(nearest) & 1), bits(nearest)) == bits(theirs)
        assert (same | np.isnan(x)).all()
        assert (np.isnan(nearest.astype("f4")) == np.isnan(x)).all()


@every_isa
@both_dtypes
def test_every_nan_becomes_one_bfloat16(isa: str, dtype: str) -> None:
    """Those at and above 0x7fff8000 would overflow."""
    patterns = [0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFF7FFF, 0x7FFF8000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF]
    with np.errstate(invalid="ignore"):
        x = np.repeat(np.array(patterns, np.uint32), 100).view(np.float32).astype(dtype)
    assert (bits(in_bfloat16(module_of(isa), x)) == 0x7FC0).all()


@every_isa
def test_bfloat16_of_a_float64_that_is_too_large(isa: str) -> None:
    ours = in_bfloat16(module_of(isa), np.array([1e300, -1e300, 1.0, 1e-300]))
    np.testing.assert_array_equal(ours.astype("f8"), [np.inf, -np.inf, 1.0, 0.0])


# Codes.


def value_of(code: int) -> float:
    """Return what a code stands for: four mantissa bits, and an exponent, minus the first number of all."""
    return float(2.0 ** (1 + code // 16) * (1 + code % 16 / 16) - 2)


VALUES = np.array([value_of(code) for code in range(256)])


def decoded(module: Any, slot: Codes, dtype: str) -> Any:
    """Return the numbers of a slot as the kernels decode them: momentum moves zeros by it."""
    w = np.zeros(slot.codes.shape, dtype)
    copy = Codes(slot.codes.copy(), slot.scales.copy())
    plan = module.Plan("test", module.RULES["momentum"], ["w"], [w], [[copy]], [0])
    plan.bind([np.zeros_like(w)])
    plan.run([(1.0, 0.0, 1.0, 0.0)])
    return w


@every_isa
@both_dtypes
@pytest.mark.parametrize("scale", [1.0, 0.3, 2.0**-110, 1e33, 0.0])
def test_every_code_is_decoded(isa: str, dtype: str, scale: float) -> None:
    for signed in (False, True) if scale else (False,):
        unit = np.float32(-scale if signed else scale)
        slot = Codes(EVERY_CODE, np.array([unit]))
        signs = np.where(EVERY_CODE < 128, 1, -1) if signed else 1
        wanted = VALUES[EVERY_CODE & 127 if signed else EVERY_CODE].astype("f4") * np.abs(unit) * signs
        assert_same_bits(decode_codes(slot), wanted.astype("f4"))
        # The kernels add it to 0, which makes -0.0 positive, and flush denormals.
        wanted = np.where(np.abs(wanted) < np.finfo("f4").tiny, 0, wanted).astype(dtype)
        assert_same_bits(decoded(module_of(isa), slot, dtype) + 0, wanted + 0)


@every_isa
@both_dtypes
@signs
def test_every_code_stays(isa: str, dtype: str, signed: bool) -> None:
    """The largest number of a group has the last code. With a power of two as the scale all is exact."""
    for exponent in (-100, -20, 0, 3, 110):
        unit = np.float32(2.0**exponent)
        slot = Codes(EVERY_CODE, np.array([-unit if signed else unit]))
        x = decode_codes(slot)
        wanted = np.where(EVERY_CODE == 128, 0, EVERY_CODE) if signed else EVERY_CODE  # 128: -0.0
        for t in range(1, 9):
            again = in_codes(module_of(isa), x.astype(dtype), t)
            np.testing.assert_array_equal(again.codes, wanted)
            assert again.scales == slot.scales


@signs
def test_nearest_rounding_finds_every_code_at_any_scale(signed: bool) -> None:
    scales = np.random.default_rng(2).uniform(1, 2, 4096) * 2.0 ** np.arange(-96, 96).repeat(22)[:4096]
    slot = Codes(np.tile(EVERY_CODE, 4096), (-scales if signed else scales).astype("f4"))
    again = encode_codes(decode_codes(slot), NEAREST)
    np.testing.assert_array_equal(again.codes, np.where(signed & (slot.codes == 128), 0, slot.codes))
    np.testing.assert_allclose(again.scales, slot.scales, rtol=2.0**-22)


@signs
def test_every_float_is_rounded_to_a_neighbouring_code(signed: bool) -> None:
    """The product of a number and the inverse of the scale is rounded to float32, as is its sum with 2."""
    for lower in lower_bits():
        x = floats(lower, signed)
        twin = encode_codes(x, random_numbers(x.size))
        for isa, module in MODULES.items():
            ours = in_codes(module, x)
            np.testing.assert_array_equal(ours.codes, twin.codes, isa)
            assert_same_bits(ours.scales, twin.scales, isa)
        assert_neighbours(x.reshape(-1, GROUP), twin)


def assert_neighbours(x: Any, slot: Codes) -> None:
    largest, codes = np.abs(x).max(1), slot.codes.reshape(x.shape)
    negative = (x < 0).any(1)
    unit = np.abs(slot.scales)
    good = (largest >= LEAST) & np.isfinite(largest)
    assert (codes[~good] == 0).all()
    assert (unit[largest < LEAST] == 0).all()
    assert (np.isnan(unit) == ~np.isfinite(largest)).all()
    assert ((slot.scales < 0) == negative)[good].all()
    x, codes, negative, unit = x[good].astype("f8"), codes[good], negative[good], unit[good, None].astype("f8")
    assert ((codes >= 128) == (x < 0))[negative].all()
    codes = np.where(negative[:, None], codes & 127, codes)
    room = 2.0**-21 * (np.abs(x) + unit)
    upper = VALUES[np.minimum(codes + 1, 255).astype(int)] * unit
    below = VALUES[np.maximum(codes.astype(int) - 1, 0)] * unit
    above = np.where(codes == np.where(negative, 127, 255)[:, None], np.abs(x), upper)
    assert ((below - room <= np.abs(x)) & (np.abs(x) <= above + room)).all()
    small = (x > 0) & (codes == 0) & ~negative[:, None]
    assert not small.any()


# Groups.


def group(*first: float) -> Any:
    """Return a group that begins with these numbers; the others are 1."""
    return np.array([*first, *[1.0] * (GROUP - len(first))], np.float32)


@every_isa
@both_dtypes
def test_no_largest_number_carries(isa: str, dtype: str) -> None:
    """Its product with the inverse of the scale, rounded up, would have the code after the last, which is 0."""
    mantissas = np.random.default_rng(3).integers(0, 1 << 23, 2000, np.uint32)
    for exponent in (27, 127, 254):
        patterns = np.array([0, 1, (1 << 23) - 1, *mantissas], np.uint32) | np.uint32(exponent << 23)
        x = np.repeat(patterns.view(np.float32), GROUP)
        assert (in_codes(module_of(isa), x.astype(dtype)).codes >= 254).all()
        x[::GROUP] *= -1
        assert (in_codes(module_of(isa), x.astype(dtype)).codes & 127 >= 126).all()
        assert (encode_codes(np.abs(x), AWAY).codes == 255).all()
        assert (encode_codes(x, AWAY).codes & 127 == 127).all()


@every_isa
@both_dtypes
def test_negative_zero_does_not_make_a_group_signed(isa: str, dtype: str) -> None:
    slot = in_codes(module_of(isa), np.concatenate([group(-0.0), group(-1e-45), group(0.0)]).astype(dtype))
    assert [*np.sign(slot.scales)] == [1, -1, 1]
    assert slot.codes[0] == slot.codes[2 * GROUP] == 0
    assert slot.codes[GROUP] & 128


@every_isa
@both_dtypes
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_group_alone(isa: str, dtype: str, bad: float) -> None:
    good = np.linspace(-1, 1, 3 * GROUP + 5).astype(dtype)
    x = good.copy()
    x[GROUP + 77] = x[-1] = bad
    slot, kept = (decode_codes(in_codes(module_of(isa), of)) for of in (x, good))
    spoilt = np.isnan(slot)
    assert spoilt.nonzero()[0].tolist() == [*range(GROUP, 2 * GROUP), *range(3 * GROUP, 3 * GROUP + 5)]
    np.testing.assert_array_equal(slot[~spoilt], kept[~spoilt])


@every_isa
def test_a_float64_that_is_too_large_spoils_its_group_alone(isa: str) -> None:
    x = np.ones(2 * GROUP)
    x[GROUP + 1] = -1e300
    slot = decode_codes(in_codes(module_of(isa), x))
    assert (slot[:GROUP] == 1).all()
    assert np.isnan(slot[GROUP:]).all()


@every_isa
@both_dtypes
def test_the_largest_float_stays_finite(isa: str, dtype: str) -> None:
    x = np.concatenate([np.full(GROUP, np.finfo("f4").max), np.full(GROUP, -np.finfo("f4").max)]).astype(dtype)
    slot = decode_codes(in_codes(module_of(isa), x))
    np.testing.assert_allclose(slot.astype("f8"), x.astype("f8"), rtol=0.04)
    assert np.isfinite(slot).all()


@every_isa
@both_dtypes
def test_groups_of_tiny_numbers_become_0(isa: str, dtype: str) -> None:
    least = 2.0**-100
    below = np.nextafter(np.float32(least), np.float32(0))
    x = np.concatenate([np.full(GROUP, y) for y in (least, below, -least, -below, 1e-45, 0.0)]).astype(dtype)
    slot = in_codes(module_of(isa), x)
    zero = np.array([False, True, False, True, True, True])
    np.testing.assert_array_equal(slot.scales == 0, zero)
    codes = slot.codes.reshape(-1, GROUP)
    assert not codes[zero].any()
    assert codes[~zero].all()
    assert not np.signbit(decode_codes(slot).reshape(-1, GROUP)[zero]).any()


@every_isa
@both_dtypes
def test_zero_stays_0_and_in_groups_of_one_sign_what_is_positive_stays_so(isa: str, dtype: str) -> None:
    tiny = [1e-45, 1e-38, 1e-20, 1e-7]
    x = np.concatenate([group(0.0, *tiny), group(0.0, *tiny, -1.0)]).astype(dtype)
    zeros, ones = 0, 0
    for t in range(1, 65):
        slot = decode_codes(in_codes(module_of(isa), x, t))
        assert slot[0] == slot[GROUP] == 0
        assert not np.signbit(slot[[0, GROUP]]).any()
        assert (slot[1:5] > 0).all()
        zeros += (slot[GROUP + 1 : GROUP + 5] == 0).sum()
        ones += (slot == 1).sum()
    assert zeros > 0
    assert ones > 60 * (2 * GROUP - 12)


def test_the_last_codes() -> None:
    assert (float(MOST_UNSIGNED), float(MOST_SIGNED)) == (VALUES[255], VALUES[127])
