"""`fastvar convert`, compared with the libraries of the file formats."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import fastvar as fv
from fastvar import checkpoint
from fastvar.checkpoint import file_format, writer
from fastvar.cli.ending import DAMAGED
from tests.support.checkpoint_files import damage, train
from tests.support.commands import run

DTYPES = [np.dtype(getattr(ml_dtypes, name, name)) for name in file_format.NATIVE + file_format.EXTENDED]


def everything() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {"a": np.ones(3, np.int8)}  # the next is not aligned
    for dtype in DTYPES:
        for shape in [(), (3, 5), (0, 2)]:
            count = int(np.prod(shape)) * dtype.itemsize
            data = rng.integers(0, 2 if dtype.kind == "b" else 256, count).astype(np.uint8)
            arrays[f"{dtype.name}/{len(shape)}/{sum(shape)}"] = data.view(dtype).reshape(shape)
    return arrays


def same(got: Any, expected: Any) -> None:
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert np.asarray(got[name]).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "h5"])
def test_convert_there_and_back(suffix: str, capsys: Any, tmp_path: Path) -> None:
    arrays = everything()
    if suffix == "safetensors":
        known = checkpoint.foreign.safetensors.NAMES.values()
        arrays = {name: array for name, array in arrays.items() if array.dtype.name in known}
    slot = np.ones(4, np.float32)
    path, target, back = tmp_path / "a.h5", tmp_path / f"b.{suffix}", tmp_path / "c.h5"
    tensors = {f"variables/{name}": array for name, array in arrays.items()}
    writer.write(path, tensors | {"optimizer/w/momentum": slot, "state/arrays/0": slot}, {}, step=5)
    code, out, err = run(capsys, "convert", path, target)
    assert (code, err) == (0, "")
    assert "the state of optimizers and other objects was left out" in out
    expected = arrays | {"optimizer/w/momentum": slot}
    if suffix == "npz":
        wide = {n: a.astype(np.float32) if a.dtype.kind == "V" else a for n, a in expected.items()}
        wide |= {n: a.astype(np.float32) for n, a in expected.items() if a.dtype.name in file_format.EXTENDED}
        assert "bfloat16/2/8: bfloat16 became float32" in out
        same(dict(np.load(target)), expected := wide)
    elif suffix == "safetensors":
        header = json.loads(target.read_bytes()[8:].split(b"}}")[0] + b"}}")
        for name, entry in header.items():
            assert entry["data_offsets"][0] % expected[name].itemsize == 0
        plain = {n: a for n, a in expected.items() if not a.dtype.name.startswith("float8")}
        with safetensors.safe_open(target, "np") as file:  # the library has no 8-bit floats for NumPy
            assert sorted(file.keys()) == sorted(expected)
            same({name: file.get_tensor(name) for name in plain}, plain)
    else:
        with h5py.File(target) as file:
            for name, array in expected.items():
                bits = array.view(f"u{array.itemsize}") if array.dtype.name in file_format.EXTENDED else array
                same({name: np.asarray(file[name][()])}, {name: bits})
    same(checkpoint.load_foreign(target), expected)
    assert run(capsys, "convert", target, back)[0] == 0
    checkpoint.verify(back)
    same({n.removeprefix("variables/"): fv.load_variable(back, n) for n, _ in fv.list_variables(back)}, expected)
    assert run(capsys, "diff", back, target)[0] == 0


def test_convert_never_replaces_unasked_and_leaves_no_debris(capsys: Any, tmp_path: Path) -> None:
    (path,) = train(tmp_path, 1)
    target = tmp_path / "out" / "a.npz"
    target.parent.mkdir()
    target.write_text("mine")
    code, _, err = run(capsys, "convert", path, target)
    assert (code, target.read_text()) == (2, "mine")
    assert err.startswith(f"fastvar convert: {target}: file exists")
    assert run(capsys, "convert", path, target, "--overwrite")[0] == 0
    assert np.load(target)["body/w"].tolist() == [2.5, 4.0]
    os.chmod(target, 0o600)
    damage(path)
    assert "file exists" in run(capsys, "convert", path, target)[2]  # known before anything is read
    code, _, err = run(capsys, "convert", path, target, "--overwrite")
    assert code == DAMAGED
    assert "damaged tensors" in err
    assert np.load(target)["body/w"].tolist() == [2.5, 4.0]
    assert [p.name for p in target.parent.iterdir()] == ["a.npz"]


def test_convert_does_not_replace_what_appears_meanwhile(tmp_path: Path, monkeypatch: Any) -> None:
    (path,) = train(tmp_path, 1)
    target = tmp_path / "a.npz"
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), target.write_text("mine")))
    with pytest.raises(FileExistsError, match="file exists; overwrite=True replaces it"):
        checkpoint.convert(path, target)
    assert target.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["a.npz", "ckpt-1.h5"]
    assert not list(tmp_path.glob(".fastvar-*.tmp"))


def test_convert_refuses_what_the_target_cannot_hold(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer.write(path, {"variables/z": np.ones(1, np.complex128)}, {}, step=0)
    code, _, err = run(capsys, "convert", path, tmp_path / "a.safetensors")
    assert code == 2
    assert "safetensors cannot hold complex128, the dtype of 'z'" in err
    code, _, err = run(capsys, "convert", path, tmp_path / "a.txt")
    assert (code, "must end in" in err) == (2, True)
    code, _, err = run(capsys, "convert", path, tmp_path / "b.h5", "--to", "fastvar")
    assert (code, "is a checkpoint already" in err) == (2, True)
    assert run(capsys, "convert", path, tmp_path / "plain", "--to", "npz")[0] == 0
    np.savez(tmp_path / "bad.npz", **{"a": np.ones(1), "a/b": np.ones(1)})
    code, _, err = run(capsys, "convert", tmp_path / "bad.npz", tmp_path / "c.h5")
    assert code == 2
    assert "cannot be both a tensor and the group" in err
    writer.write(tmp_path / "both.h5", {"variables/o": np.ones(1), "o/w/m": np.ones(1)}, {}, step=0)
    code, _, err = run(capsys, "convert", tmp_path / "both.h5", tmp_path / "plain.h5")
    assert code == 2
    assert "cannot be both a tensor and the group" in err
    writer.write(tmp_path / "twice.h5", {"variables/o/w/m": np.ones(1), "o/w/m": np.ones(1)}, {}, step=0)
    code, _, err = run(capsys, "convert", tmp_path / "twice.h5", tmp_path / "d.npz")
    assert (code, "would have one name" in err) == (2, True)
