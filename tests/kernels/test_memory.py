"""Weights, slots and gradients given as raw memory: the same bits as given as arrays, through the same gate."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastvar import buffers, formats, kernels
from fastvar.kernels import reference

MODULES = {**{isa: kernels.load(isa)[1] for isa in kernels.supported()}, "reference": reference}
every_module = pytest.mark.parametrize("isa", MODULES)
SHAPES = [(300, 7), (5,), (), (0, 3)]
SCALARS = [(0.1, 0.9, 0.1, 0.5, 0.25, 1.5, 1e-7)]


def memory_of(arrays: list[Any]) -> Any:
    """Return the records of arrays, in formats that are in turn of any dtype; None is nothing."""
    records = np.zeros(len(arrays), buffers.MEMORY)
    for record, array in zip(records, arrays, strict=True):
        number = -1 if array is None else [*formats.FORMATS].index(array.dtype.name)
        record["format"] = number
        if array is not None:
            record["address"], record["size"] = array.ctypes.data, array.size
            record["writable"] = array.flags.writeable
    return records


def tensors(dtype: Any, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.random(shape)).astype(dtype) for shape in SHAPES]


def plan_of(module: Any, weights: list[Any], slots: list[Any]) -> Any:
    names = [f"w{i}" for i in range(len(weights))]
    return module.Plan("test", module.RULES["adam"], names, weights, slots, [0] * len(weights))


def as_memory(array: Any) -> Any:
    return buffers.array_at(memory_of([array])[0], "test", keep=array)


@every_module
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("missing", [None, 0, 1])
def test_raw_memory_gives_the_bits_of_arrays(isa: str, dtype: Any, name: str, missing: int | None) -> None:
    runs = []
    for raw in (False, True):
        weights, slots = tensors(dtype, 0), [*zip(tensors(dtype, 1), tensors(dtype, 2), strict=True)]
        grads: list[Any] = tensors(np.dtype(getattr(ml_dtypes, name, name)), 3)
        if missing is not None:
            grads[missing] = None
        given = [[as_memory(a) for a in of] for of in (weights, *slots)] if raw else [weights, *slots]
        plan = plan_of(MODULES[isa], given[0], given[1:])
        for _ in range(3):
            assert plan.bind(memory_of(grads) if raw else grads) == len(grads) - (missing is not None)
            plan.run(SCALARS)
        runs.append([a.tobytes() for of in (weights, *slots) for a in of])
    assert runs[0] == runs[1]


@every_module
def test_arrays_and_memory_take_turns(isa: str) -> None:
    weights, slots = tensors(np.float32, 0), [*zip(tensors(np.float32, 1), tensors(np.float32, 2), strict=True)]
    plan, grads = plan_of(MODULES[isa], weights, slots), tensors(np.float32, 3)
    sliced = [fv_slices(grads[0]), *grads[1:]]
    strided = np.repeat(memory_of(grads), 2)[::2]
    for given in (sliced, memory_of(grads), grads, strided, sliced):
        plan.bind(given)
        plan.run(SCALARS)
    twin = tensors(np.float32, 0), [*zip(tensors(np.float32, 1), tensors(np.float32, 2), strict=True)]
    plan = plan_of(reference, *twin)
    for given in (sliced, grads, grads, grads, sliced):
        plan.bind(given)
        plan.run(SCALARS)
    assert [w.tobytes() for w in weights] == [w.tobytes() for w in twin[0]]


def fv_slices(array: Any) -> Any:
    from fastvar import IndexedSlices

    return IndexedSlices(array[:2], [4, 1], array.shape)


@every_module
def test_raw_gradients_are_zeroed(isa: str) -> None:
    weights, slots = tensors(np.float32, 0), [*zip(tensors(np.float32, 1), tensors(np.float32, 2), strict=True)]
    plan, grads = plan_of(MODULES[isa], weights, slots), tensors(np.float32, 3)
    plan.bind(memory_of(grads), True)
    plan.run(SCALARS)
    assert not any(g.any() for g in grads)


def spoilt(**changes: Any) -> Any:
    def spoil(records: Any, weights: list[Any]) -> Any:
        for field, value in changes.items():
            records[0][field] = value
        return records

    return spoil


def on_weights(records: Any, weights: list[Any]) -> Any:
    records[0]["address"] = weights[1].ctypes.data
    return records


def on_slots_end(records: Any, weights: list[Any]) -> Any:
    records[0]["address"] = weights[0].ctypes.data - 4
    return records


BAD: dict[str, tuple[Any, Any, str]] = {
    "size": (spoilt(size=2099), ValueError, "must have 2,100 elements, got 2,099"),
    "negative size": (spoilt(size=-1), ValueError, "memory of some size"),
    "nothing": (spoilt(address=0), ValueError, "memory of some size"),
    "misaligned": (spoilt(address=4097), ValueError, "must be aligned to 4 bytes"),
    "format": (spoilt(format=99), TypeError, "must be of one of float32, .*, got format 99"),
    "weights": (on_weights, ValueError, "must not share memory with test: w1; pass a copy"),
    "below weights": (on_slots_end, ValueError, "must not share memory with test: w0; pass a copy"),
    "too few": (lambda records, _: records[:3], ValueError, "must be given 4 gradients, got 3"),
}


@every_module
@pytest.mark.parametrize("case", BAD)
def test_bad_memory_is_refused_before_anything_changes(isa: str, case: str) -> None:
    spoil, error, message = BAD[case]
    weights, slots = tensors(np.float32, 0), [*zip(tensors(np.float32, 1), tensors(np.float32, 2), strict=True)]
    plan, grads = plan_of(MODULES[isa], weights, slots), tensors(np.float32, 3)
    before = [a.tobytes() for of in (weights, *slots) for a in of]
    with pytest.raises(error, match=message):
        plan.bind(spoil(memory_of(grads), weights))
    with pytest.raises(RuntimeError, match="bind gradients first"):
        plan.run(SCALARS)
    assert [a.tobytes() for of in (weights, *slots) for a in of] == before
    plan.bind(memory_of(grads))
    plan.run(SCALARS)
    assert [a.tobytes() for of in (weights, *slots) for a in of] != before


@every_module
def test_memory_that_cannot_be_zeroed_is_refused(isa: str) -> None:
    weights, slots = tensors(np.float32, 0), [*zip(tensors(np.float32, 1), tensors(np.float32, 2), strict=True)]
    plan, grads = plan_of(MODULES[isa], weights, slots), tensors(np.float32, 3)
    records = memory_of(grads)
    records[1]["writable"] = 0
    with pytest.raises(ValueError, match="gradient of w1: must be a writable contiguous array to be zeroed"):
        plan.bind(records, True)
    same = memory_of([grads[0], weights[1].copy(), grads[2], grads[3]])
    same[1]["address"] = same[0]["address"]
    with pytest.raises(ValueError, match="must not share memory"):
        plan.bind(same, True)
    plan.bind(same)


@pytest.mark.parametrize("writable", [True, False])
def test_weights_as_memory_pass_the_gate(writable: bool) -> None:
    array = np.arange(6, dtype=np.float32)
    array.flags.writeable = writable
    seen = as_memory(array)
    assert seen.flags.writeable == writable
    assert (seen == array).all()
    if not writable:
        with pytest.raises(ValueError, match="writable"):
            plan_of(kernels.active, [seen], [[seen.copy(), seen.copy()]])
