"""Tensors of types that a format lacks, as other libraries write them; and unreadable ones among others."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import fastvar as fv
from fastvar.checkpoint import convert, file_format, inspect, load_foreign

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's

EXTENDED = [np.dtype(getattr(ml_dtypes, name)) for name in file_format.EXTENDED]
SHAPES = [(), (3,), (2, 3), (0, 2)]


def every_value(dtype: Any, shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.random.default_rng(1).integers(0, 256, size).astype(np.uint8).view(dtype).reshape(shape)


def equal(one: Any, two: Any) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_weights_of_keras_in_bfloat16(dtype: str, marked: bool, tmp_path: Path) -> None:
    """Keras 3 names the type in an attribute; older versions do not."""
    layers = [keras.Input((3,)), keras.layers.Dense(4, dtype="bfloat16"), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    path = tmp_path / "m.weights.h5"
    model.save_weights(path)
    options = {}
    if not marked:
        with h5py.File(path, "r+") as file:
            del file["layers/dense/vars/0"].attrs["dtype"], file["layers/dense/vars/1"].attrs["dtype"]
        options = {"opaque": "bfloat16"}
    kinds = [np.dtype(dtype), np.dtype(dtype), *[np.dtype(np.float32)] * 2]
    net = {
        f"layers/dense{suffix}/vars/{index}": fv.Variable(np.zeros(w.shape, kind), trainable=False)
        for (suffix, index), w, kind in zip(
            [("", 0), ("", 1), ("_1", 0), ("_1", 1)], model.weights, kinds, strict=True
        )
    }
    checkpoint = fv.Checkpoint(net)
    if not marked:
        with pytest.raises(ValueError, match=r"vars/0: its dtype \|V2 .*opaque='bfloat16'"):
            checkpoint.import_weights(path)
        assert not any(v.value.any() for v in net.values())
        assert len(checkpoint.import_weights(path, partial=True).missing) == 2
    assert len(checkpoint.import_weights(path, **options).taken) == 4
    for v, weight in zip(net.values(), model.weights, strict=True):
        assert equal(v.value, np.asarray(weight.value).astype(v.dtype))


@pytest.mark.parametrize("how", ["h5py", "h5py, with gzip", "np.savez", "np.savez_compressed"])
@pytest.mark.parametrize("dtype", EXTENDED, ids=str)
def test_arrays_of_ml_dtypes(dtype: Any, how: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    arrays = {f"w{len(shape)}{sum(shape)}": every_value(dtype, shape) for shape in SHAPES}
    arrays["f"] = np.asfortranarray(every_value(dtype, (2, 3)))
    if how.startswith("np"):
        with open(path, "wb") as stream:
            (np.savez if how == "np.savez" else np.savez_compressed)(stream, **arrays)
    elif dtype.name == "float8_e5m2":
        pytest.skip("h5py does not write it")
    else:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                gzip = {"compression": "gzip"} if "gzip" in how and array.ndim and array.size else {}
                file.create_dataset(name, data=array, **gzip)
    for opaque in (dtype.name, dtype, dtype.type, dict.fromkeys(arrays, dtype.name)):
        got = load_foreign(path, opaque=opaque)
        assert all(
            equal(got[name], np.ascontiguousarray(array).reshape(array.shape)) for name, array in arrays.items()
        )
    with pytest.raises(fv.CheckpointError, match=r"opaque='(bfloat16|float8_e4m3fn)'"):
        load_foreign(path)
    with pytest.raises(fv.CheckpointError, match="opaque="):  # of a different size
        load_foreign(path, opaque="float32")
    w = fv.Variable(np.zeros((2, 3)), name="f")
    fv.Checkpoint(variables=[w]).import_weights(path, opaque={**dict.fromkeys(arrays), "f": dtype})
    assert np.array_equal(w.value, arrays["f"].astype(np.float64), equal_nan=True)
    notes = convert(path, tmp_path / "new.npz", opaque=dtype.name)
    assert len(notes) == len(arrays)
    assert equal(np.load(tmp_path / "new.npz")["f"], np.ascontiguousarray(arrays["f"]).astype(np.float32))


@pytest.mark.parametrize("libver", ["earliest", "v110", "latest"])
@pytest.mark.parametrize("others", [0, 3, 6, 20])
def test_a_type_named_by_text_of_any_length_wherever_it_stands(libver: str, others: int, tmp_path: Path) -> None:
    """libhdf5 spreads headers over the file as attributes are added, and may store more than eight differently."""
    path, array = tmp_path / "a.h5", every_value(np.dtype(ml_dtypes.bfloat16), (3, 5))
    with h5py.File(path, "w", libver=libver, userblock_size=1024) as file:
        for group in "ab":
            data = file.create_dataset(f"{group}/w", data=array, track_order=group == "b")
            for index in range(others):
                data.attrs[f"attribute {index}"] = "x" * 50 * index
            data.attrs["dtype"] = "bfloat16"
            data.attrs["dtypes"] = "float8_e5m2"
        file["c"] = array
        file["c"].attrs["dtype"] = "float8_e5m2"  # of a different size
        file["d"] = array
        file["d"].attrs["dtype"] = "x" * 10_000
        file["e"] = array.view(ml_dtypes.float8_e4m3fn)
        file["e"].attrs["dtype"] = "float8_e4m3fn"
    got = load_foreign(path)
    for name in ("a/w", "b/w"):
        if others <= 6 or (libver == "earliest" and name == "a/w"):
            assert equal(got[name], array)
        else:  # newer files store more than eight attributes differently
            assert "opaque='bfloat16'" in got.left[name]
    assert not {"c", "d"}.intersection(got)
    assert equal(got["e"], array.view(ml_dtypes.float8_e4m3fn))
    assert sorted(load_foreign(path, opaque="bfloat16")) == ["a/w", "b/w", "c", "d", "e"]


def test_types_are_given_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    a, b = np.arange(3).astype(ml_dtypes.float8_e4m3fn), np.arange(3).astype(ml_dtypes.float8_e5m2)
    np.savez(path, a=a, b=b, c=np.arange(3).astype(ml_dtypes.bfloat16), d=np.arange(3))
    got = load_foreign(path, opaque={"a": "float8_e4m3fn", "b": ml_dtypes.float8_e5m2, "c": None})
    assert equal(got["a"], a)
    assert equal(got["b"], b)
    assert sorted(got) == ["a", "b", "d"]
    assert got.notes == ["c: left out, as opaque says"]
    got = load_foreign(path, opaque="float8_e5m2")
    assert sorted(got) == ["a", "b", "d"]
    with pytest.raises(KeyError, match="opaque='bfloat16'"):
        got["c"]
    with pytest.raises(KeyError, match="'e'"):
        got["e"]
    for name in ("d", "e"):
        with pytest.raises(ValueError, match=f"opaque names '{name}', which is no tensor of opaque bytes"):
            load_foreign(path, opaque={name: "bfloat16"})
    with pytest.raises(ValueError, match="got 'bfloat17'"):
        load_foreign(path, opaque="bfloat17")
    with pytest.raises(TypeError):
        load_foreign(path, opaque=3)


UNREADABLE = {
    "structure": lambda file: file.create_dataset("bad", data=np.zeros(3, [("a", "f4"), ("b", "i4")])),
    "reference": lambda file: file.create_dataset("bad", data=np.array([file.ref], h5py.ref_dtype)),
    "region": lambda file: file.create_dataset(
        "bad", data=np.array([file["good"].regionref[:1]], h5py.regionref_dtype)
    ),
    "ragged": lambda file: file.create_dataset("bad", (2,), h5py.vlen_dtype(np.float32)),
    "opaque": lambda file: file.create_dataset("bad", data=np.void(b"pickle")),
    "time": lambda file: file.create_dataset(
        "bad", data=np.zeros(2, "M8[s]").astype(h5py.opaque_dtype(np.dtype("M8[s]")))
    ),
    "long double": lambda file: file.create_dataset("bad", data=np.zeros(2, np.longdouble)),
    "filter": lambda file: file.create_dataset("bad", (64,), "i4", chunks=(64,), scaleoffset=4),
    "unwritten, and absurd": lambda file: file.create_dataset("bad", (1 << 40,), "f4"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_one_unreadable_dataset_leaves_the_others_readable(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["good"] = np.arange(3.0)
        UNREADABLE[kind](file)
    got = load_foreign(path)
    assert list(got) == ["good"]
    assert got["good"].tolist() == [0, 1, 2]
    (note,) = got.notes
    assert note.startswith("bad: ")
    assert inspect(path).notes == [note]
    assert convert(path, tmp_path / "b.npz") == [f"{note} (left out)"]
    good, bad = fv.Variable(np.zeros(3)), fv.Variable(np.zeros(3))
    assert fv.Checkpoint(good=good).import_weights(path).notes == [note]
    assert good.value.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        fv.Checkpoint(good=good, bad=bad).import_weights(path)
    assert f"mismatched: variables/{note}" in str(caught.value)
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        fv.Checkpoint(good=good, w=bad).import_weights(path, name_map={"w": "bad"})
    assert note.removeprefix("bad: ") in str(caught.value)


@pytest.mark.parametrize(
    "options", [{}, {"fillvalue": 7}, {"chunks": (2, 2)}, {"compression": "gzip", "fillvalue": 2}]
)
@pytest.mark.parametrize("dtype", ["f4", "i8", "?"])
def test_what_was_never_written_is_its_fill_value(options: Any, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (300, 400), dtype, **options)
        file["v"] = np.ones(2)
    with h5py.File(path) as file:
        expected = file["w"][()]
    assert equal(load_foreign(path)["w"], expected)


def test_what_was_written_in_part_is_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, options in {"plain": {}, "packed": {"compression": "gzip"}}.items():
            data = file.create_dataset(name, (100, 100), "f4", chunks=(10, 10), fillvalue=3, **options)
            data[:5] = 1
        expected = file["plain"][()]
    got = load_foreign(path)
    assert equal(got["plain"], expected)
    assert equal(got["packed"], expected)


def test_without_a_fill_value_what_was_never_written_is_zero(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(file.id, b"w", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create_simple((1000,)), options)
    assert not load_foreign(tmp_path / "a.h5")["w"].any()


def test_one_unreadable_member_of_npz_leaves_the_others_readable(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    bad = {
        "structure": np.zeros(2, [("a", "f4")]),
        "object": np.array([{}], object),
        "time": np.zeros(2, "M8[s]"),
        "name": np.zeros(2, [("\N{GREEK SMALL LETTER PI}", "f4")]),  # version 3 of the format
        "raw": np.zeros(2, "V7"),
        "long double": np.zeros(2, np.longdouble),
    }
    with pytest.warns(UserWarning, match="format 3"):
        np.savez(path, good=np.arange(3), **bad)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as file:
        file.writestr("packed.npy", b"whatever" * 100)
    got = load_foreign(path)
    assert list(got) == ["good"]
    assert sorted(got.left) == sorted([*bad, "packed"])
    w = fv.Variable(np.zeros(3, np.int64), trainable=False)
    assert len(fv.Checkpoint(good=w).import_weights(path).notes) == 7
    assert w.value.tolist() == [0, 1, 2]


def test_one_entry_of_an_unknown_dtype_in_safetensors_leaves_the_others_readable(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones(2, np.float32), "w": np.float32([1, 2])}, tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a"] |= {"dtype": "F4", "shape": [16]}
    text = json.dumps(header).encode()
    (tmp_path / "b").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    got = load_foreign(tmp_path / "b")
    assert list(got) == ["w"]
    assert got["w"].tolist() == [1, 2]
    assert got.notes == ["a: its dtype F4 is not one that NumPy can hold"]
