"""A slot in 8 bits reads as an array, and is written by `assign` and items alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import fastvar as fv
from fastvar.kernels.numpy_formats import NEAREST, decode_codes, encode_codes
from fastvar.optimizer.quantized import Quantized
from tests.support.cases import assert_same_bits

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(params=["float32", "float64"])
def slot(request: pytest.FixtureRequest) -> Quantized:
    made = Quantized.zeros((4, 300), request.param, "m")
    made.assign(np.linspace(-2, 2, 1200).reshape(4, 300))
    return made


def test_a_slot_reads_as_an_array(slot: Quantized) -> None:
    values = decode_codes(encode_codes(np.linspace(-2, 2, 1200, dtype=np.float32), NEAREST)).reshape(4, 300)
    assert_same_bits(slot.numpy(), values.astype(slot.dtype))
    assert (slot.shape, slot.ndim, slot.size, len(slot), slot.trainable) == ((4, 300), 2, 1200, 4, False)
    assert (slot.codes.dtype, slot.codes.shape) == (np.uint8, (4, 300))
    assert (slot.scales.dtype, slot.scales.shape) == (np.float32, (5,))
    assert slot.nbytes == 1200 + 20
    assert repr(slot) == f"<8-bit slot 'm' shape=(4, 300) dtype={slot.dtype}, 1,220 bytes>"
    np.testing.assert_array_equal(slot + 1, slot.numpy() + 1)
    np.testing.assert_array_equal(2 - slot, 2 - slot.numpy())
    np.testing.assert_array_equal(np.sqrt(abs(slot)), np.sqrt(abs(slot.numpy())))
    np.testing.assert_array_equal(slot[1, ::7], slot.numpy()[1, ::7])
    assert slot.sum() == slot.numpy().sum()
    assert (slot > 0).sum() == (slot.numpy() > 0).sum()


def test_a_slot_is_written_by_assign_and_items_alone(slot: Quantized) -> None:
    before = slot.numpy()
    with pytest.raises(ValueError, match="read-only"):
        slot.value[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        slot += 1
    with pytest.raises(ValueError, match="read-only"):
        np.add(slot, 1, out=slot)
    with pytest.raises(ValueError, match="read-only"):
        slot.fill(1)
    with pytest.raises(AttributeError):
        slot.value = 1
    for value, error in (
        (np.ones(1200), r"slot 'm': value must have shape \(4, 300\), got \(1200,\)"),
        (np.ones((4, 300), complex), "slot 'm': value must be real numbers, got complex128"),
        (np.full((4, 300), "x"), "slot 'm': value must be real numbers, got <U1"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            slot.assign(value)
    assert_same_bits(slot.numpy(), before)
    slot.numpy()[...] = 0  # a copy
    assert_same_bits(slot.numpy(), before)
    for value in (
        np.ones((4, 300), BFLOAT16),
        np.ones((4, 300), int),
        [[1] * 300] * 4,
        fv.Variable(before * 0 + 1),
    ):
        assert slot.assign(value) is slot
        assert (slot == 1).all()
    slot[2, 5:7] = 0.5
    assert [*slot[2, 4:8]] == pytest.approx([1, 0.5, 0.5, 1], rel=0.04)
    assert (slot[:2] == 1).all()
    slot[...] = 0
    assert not slot.scales.value.any()


def test_a_large_slot_is_converted_in_pieces() -> None:
    values = np.random.default_rng(0).standard_normal((1031, 2051)).astype(np.float32)
    large = Quantized.zeros(values.shape, np.float32).assign(values)
    whole = encode_codes(values.reshape(-1), NEAREST)
    np.testing.assert_array_equal(large.codes.value.reshape(-1), whole.codes)
    np.testing.assert_array_equal(large.scales.value, whole.scales)
    np.testing.assert_array_equal(large.value.reshape(-1), decode_codes(whole))


def test_what_is_too_large_or_not_finite_spoils_its_group() -> None:
    slot = Quantized.zeros((600,), np.float64)
    slot.assign(np.where(np.arange(600) == 300, 1e300, 1.0))
    assert np.isnan(slot).nonzero()[0].tolist() == [*range(256, 512)]


def test_codes_and_scales_can_be_written(slot: Quantized) -> None:
    twin = Quantized.zeros(slot.shape, slot.dtype)
    twin.codes.assign(slot.codes)
    twin.scales.assign(slot.scales)
    assert_same_bits(twin.numpy(), slot.numpy())


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda slot: pickle.loads(pickle.dumps(slot))], ids=["copy", "pickle"]
)
def test_a_copied_slot_is_its_own(how: Any, slot: Quantized) -> None:
    twin = how(slot)
    assert_same_bits(twin.numpy(), slot.numpy())
    assert repr(twin) == repr(slot)
    twin[...] = 0
    assert slot.numpy().any()
