"""Conversion refuses what a format reserves or cannot hold, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors

import fastvar as fv
from fastvar.checkpoint import conversion, convert, file_format, load_foreign
from tests.support.managers import files

ARRAY = np.float32([1, 2])
DTYPES = [np.dtype(getattr(ml_dtypes, name, name)) for name in file_format.NATIVE + file_format.EXTENDED]
ODD = [
    *("", "a\0b", "a\0c", ".", "..", "../x", "/x", "x/", "a//b", "a/./b"),  # no paths in HDF5
    *(" ", "CON", "file", "arr_0", "arr_0.npy", "a.npy", "a.npy.npy", ".npy", "__metadata__/x", "manifest"),
    *("state/json", "variables/w", "a\nb", 'a"b', "a\\b", "\ud800", "é", "e\u0301", "\U0001f600"),
    *("x" * 300, "x" * 5000, "x" * 70_000),
]
SECOND = ["a", "a.npy", "a/b", "A"]


def source(path: Path, names: list[str], array: Any = ARRAY) -> Path:
    """Write a safetensors file, with any names."""
    header, data, end = {}, b"", 0
    kind = {dtype: name for name, dtype in fv.checkpoint.foreign.safetensors.NAMES.items()}[array.dtype.name]
    for count, name in enumerate(names):
        data += (array + count).astype(array.dtype).tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [end, len(data)]}
        end = len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def read(path: Path, to: str) -> dict[str, Any]:
    """Read a file with the library of its format."""
    if to == "safetensors":
        with safetensors.safe_open(path, "np") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if to == "npz":
        with np.load(path) as loaded:
            return {name: loaded[name] for name in loaded.files}
    found: dict[str, Any] = {}

    def visit(name: str, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset):
            found[name] = thing[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return {name.removeprefix("variables/" * (to == "fastvar")): array for name, array in found.items()}


@pytest.mark.parametrize("to", conversion.FORMATS)
def test_every_name_comes_through_or_is_refused(to: str, tmp_path: Path) -> None:
    """Also in pairs, as one may replace another."""
    refused, target = set(), tmp_path / "target"
    cases = [[name] for name in ODD] + [
        [one, two] for one in ODD if one[:1] == "a" for two in SECOND if one != two
    ]
    given = tmp_path / "given"
    for names in cases:
        source(given, names)
        try:
            convert(given, target, to=to, overwrite=True)
        except ValueError:
            refused.add(tuple(names))
            assert files(tmp_path) == ["given"]
            continue
        got = read(target, to)
        for count, name in enumerate(names):
            assert np.array_equal(got[name], ARRAY + count), names
        assert all(np.array_equal(load_foreign(target, edited=True)[n], got[n]) for n in names if to != "fastvar")
        target.unlink()
    singles = {names[0] for names in refused if len(names) == 1}
    assert (
        singles
        == {
            "safetensors": {"\ud800"},  # of names that its own files can have
            "npz": {"a\0b", "a\0c", "\ud800", "x" * 70_000},
        }.get(to, {*ODD[:10], "\ud800", "x" * 5000, "x" * 70_000})
    )
    assert (("a.npy", "a") in refused) == (to == "npz")
    assert (("a/./b", "a") in refused) == (to in ("h5", "fastvar"))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 1)])
@pytest.mark.parametrize("to", ["h5", "npz", "safetensors"])
def test_every_dtype_comes_through_or_is_refused(to: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    for dtype in DTYPES:
        array = np.ones(shape).astype(dtype)
        path = fv.Checkpoint(w=fv.Variable(array, trainable=False)).save(tmp_path / "a.h5", overwrite=True)
        target = tmp_path / "target"
        if to == "safetensors" and dtype.name in (
            *("complex128", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz"),
        ):
            with pytest.raises(ValueError, match=f"cannot hold {dtype.name}, the dtype of 'w'"):
                convert(path, target, to=to, overwrite=True)
            continue
        notes = convert(path, target, to=to, overwrite=True)
        got = load_foreign(target)["w"]
        wide = to == "npz" and dtype.name in file_format.EXTENDED
        assert (got.dtype, got.shape) == (np.dtype(np.float32) if wide else dtype, shape)
        assert np.array_equal(got.astype(np.complex128), array.astype(np.complex128))
        assert notes == ([f"w: {dtype.name} became float32"] if wide else [])


def test_a_variable_named_as_the_format_names_its_own_text(tmp_path: Path) -> None:
    w = fv.Variable(ARRAY, name="__metadata__")
    path = fv.Checkpoint(variables=[w]).save(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="safetensors cannot hold the name '__metadata__'"):
        convert(path, tmp_path / "a.safetensors")
    assert files(tmp_path) == ["a.h5"]
    convert(path, tmp_path / "a.npz")
    assert np.load(tmp_path / "a.npz")["__metadata__"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="safetensors cannot hold"):
        convert(tmp_path / "a.npz", tmp_path / "a.safetensors")


def test_more_names_than_the_format_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path / "a", ["v", "w"])
    convert(path, tmp_path / "b.safetensors")
    monkeypatch.setattr(conversion, "_MAX_HEADER", 100)
    with pytest.raises(ValueError, match="safetensors cannot hold the names of 2 tensors"):
        convert(path, tmp_path / "c.safetensors")
    assert files(tmp_path) == ["a", "b.safetensors"]
