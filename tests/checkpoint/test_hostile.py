"""Files that could do harm (links, hidden code, bombs, lies, damage) are refused, and the error says why."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint import load_foreign


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def external_link(file: Any, folder: Path) -> None:
    file["w"] = h5py.ExternalLink(str(folder / "trap"), "/x")


def external_storage(file: Any, folder: Path) -> None:
    file.create_dataset("w", (4,), "f4", external=[(str(folder / "trap"), 0, 16)])


def virtual(file: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "trap"), "x", (4,))
    file.create_virtual_dataset("w", layout)


def references(file: Any, folder: Path) -> None:
    file["w"] = np.array([file.ref], h5py.ref_dtype)


def regions(file: Any, folder: Path) -> None:
    data = file.create_dataset("a", (4,), "f4")
    data[...] = 1
    file["w"] = np.array([data.regionref[:2]], h5py.regionref_dtype)
    del file["a"]


def compound(file: Any, folder: Path) -> None:
    file["w"] = np.zeros(3, [("a", "f4"), ("b", "i4")])


def ragged(file: Any, folder: Path) -> None:
    file.create_dataset("w", (2,), h5py.vlen_dtype(np.float32))


def opaque(file: Any, folder: Path) -> None:
    file["w"] = np.void(b"pickle")


def never_written(file: Any, folder: Path) -> None:
    file.create_dataset("w", (1 << 40,), "f4")


def never_written_chunks(file: Any, folder: Path) -> None:
    file.create_dataset("w", (1 << 30, 1 << 20), "f8", chunks=(16, 16), compression="gzip")


def one_chunk_of_many(file: Any, folder: Path) -> None:
    data = file.create_dataset("w", (1 << 30,), "f4", chunks=(1 << 10,))
    data[0] = 1


def huge_chunk(file: Any, folder: Path) -> None:
    data = file.create_dataset("w", (4,), "u1", chunks=(1 << 29,), maxshape=(None,), compression="gzip")
    data.id.write_direct_chunk((0,), b"x" * 10)


def compressed_twice(file: Any, folder: Path) -> None:
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_chunk((1 << 20,))
    options.set_deflate(9)
    options.set_deflate(9)
    space, kind = h5py.h5s.create_simple((1 << 20,)), h5py.h5t.NATIVE_FLOAT
    h5py.h5d.create(file.id, b"w", kind, space, options).write(h5py.h5s.ALL, h5py.h5s.ALL, np.zeros(1 << 20, "f4"))


def two_compressions(file: Any, folder: Path) -> None:
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_chunk((1 << 10,))
    options.set_deflate(9)
    options.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL)
    space, kind = h5py.h5s.create_simple((1 << 10,)), h5py.h5t.NATIVE_FLOAT
    h5py.h5d.create(file.id, b"w", kind, space, options)


def other_filter(file: Any, folder: Path) -> None:
    file.create_dataset("w", (64,), "i4", chunks=(64,), scaleoffset=4)[...] = 1


def cycle(file: Any, folder: Path) -> None:
    inner = file.create_group("a/b")
    inner["c"] = file["a"]


def root_cycle(file: Any, folder: Path) -> None:
    file.create_group("a")["w"] = file["/"]


HOSTILE = {
    external_link: "'w' is a link out of the file",
    external_storage: "dataset 'w': its data are in another file",
    virtual: "dataset 'w': its data are in other datasets",
    references: "dataset 'w': it holds references",
    regions: "dataset 'w': it holds references",
    compound: "dataset 'w': its dtype .* is not one of numbers",
    ragged: "dataset 'w': its dtype object is not one of numbers",
    opaque: "dataset 'w': its dtype .* is not one of numbers",
    never_written: "dataset 'w': 0 stored bytes cannot be the 4,398,046,511,104",
    never_written_chunks: "dataset 'w': 0 stored bytes cannot hold",
    one_chunk_of_many: "dataset 'w': 4,096 stored bytes cannot be",
    huge_chunk: "dataset 'w': 10 stored bytes cannot hold",
    compressed_twice: "dataset 'w': it is compressed twice",
    two_compressions: "dataset 'w': it is compressed twice",
    other_filter: "dataset 'w': it needs a filter other than",
    cycle: "group 'a/b/c' has two names, or holds itself",
    root_cycle: "group 'a/w' has two names, or holds itself",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_hostile_hdf5_is_refused(make: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, tmp_path)
    trap = tmp_path / "trap"
    os.mkfifo(trap)  # opening it blocks
    tracemalloc.start()
    with pytest.raises(fv.CheckpointError, match=HOSTILE[make]):
        load_foreign(tmp_path / "a.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 22


@pytest.mark.skipif(not Path("/usr/bin/strace").exists(), reason="strace is not installed")
@pytest.mark.parametrize("make", [external_link, external_storage, virtual], ids=lambda make: make.__name__)
def test_no_other_file_is_opened(make: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, tmp_path)
    (tmp_path / "trap").write_bytes(bytes(16))
    code = f"from fastvar.checkpoint import load_foreign; load_foreign({str(tmp_path / 'a.h5')!r})"
    traced = subprocess.run(
        ["strace", "-f", "-e", "trace=%file", "-o", tmp_path / "log", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    log = (tmp_path / "log").read_text()
    if "a.h5" not in log:
        pytest.skip("strace may not trace here")
    assert "CheckpointError" in traced.stderr
    assert "trap" not in log


def patched(path: Path, old: int, new: int) -> None:
    """Replace a number in a file of HDF5's old format, which has no checksums."""
    data = path.read_bytes()
    assert data.count(old.to_bytes(8, "little")) >= 1
    path.write_bytes(data.replace(old.to_bytes(8, "little"), new.to_bytes(8, "little")))


def test_datasets_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = [file.create_dataset(f"w{i}", (5555,), "u1") for i in range(9)]  # all headers, then the bytes
        for one in data:
            one[...] = 1
        places = [one.id.get_offset() for one in data]
    assert places == sorted(places)
    for place in places[1:]:
        patched(path, place, places[0])
    end = places[0] + 5555
    patched(path, path.stat().st_size, end)
    os.truncate(path, end)
    with pytest.raises(fv.CheckpointError, match="the file is shorter than the data that it claims to hold"):
        load_foreign(path)


def test_data_that_are_longer_than_their_shape_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = np.ones(7777, "u2")
    patched(tmp_path / "a.h5", 7777, 3333)
    with pytest.raises(fv.CheckpointError, match="'w': 15,554 stored bytes cannot be the 6,666 that it claims"):
        load_foreign(tmp_path / "a.h5")


def npz(path: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def npy(array: Any, **replace: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=True)
    data = out.getvalue()
    for old, new in replace.items():
        assert old.encode() in data
        data = data.replace(old.encode().ljust(len(new)), new.encode())
    return data


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = npz(tmp_path / "a.npz", ("w.npy", npy(np.array([Evil()], object))))
    with pytest.raises(fv.CheckpointError, match="'w': its dtype object is not one of numbers"):
        load_foreign(path)
    assert not (tmp_path / "owned").exists()
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(fv.CheckpointError, match="neither HDF5 nor"):
        load_foreign(path)
    assert not (tmp_path / "owned").exists()


def test_zip_bombs_and_lies_are_refused(tmp_path: Path) -> None:
    good = npy(np.zeros(1000))
    lies = {
        "shape": (npy(np.zeros(1000), **{"(1000,)": "(9000,)"}), "8,000 bytes cannot be of float64"),
        "negative": (npy(np.zeros(1000), **{"(1000,)": "(-100,)"}), "is negative"),
        "short": (good[:-8], "7,992 bytes cannot be of float64"),
        "long": (good + bytes(8), "8,008 bytes cannot be of float64"),
        "structured": (npy(np.zeros(2, [("a", "f4")])), "not one of numbers"),
        "version": (b"\x93NUMPY\x03" + good[7:], "not one of arrays of numbers"),
        "nothing": (b"", "array 'w'"),
    }
    for what, (data, words) in lies.items():
        with pytest.raises(fv.CheckpointError, match=words):
            load_foreign(npz(tmp_path / f"{what}.npz", ("w.npy", data)))
    path = npz(tmp_path / "twice.npz", ("w.npy", good))
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("w.npy", good)
    with pytest.raises(fv.CheckpointError, match="'w' is there twice"):
        load_foreign(path)
    path = npz(tmp_path / "lzma.npz", ("w.npy", good), compression=zipfile.ZIP_LZMA)
    with pytest.raises(fv.CheckpointError, match="compressed otherwise"):
        load_foreign(path)


def test_a_zip_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    """The header of each member agrees with the wrong size in the directory of the zip."""
    count = 500_000_000
    data = npy(np.zeros(1000), **{"(1000,)": f"({count},)"})
    claimed = len(data) - 8000 + 8 * count
    for compression, both, words in [
        (zipfile.ZIP_DEFLATED, False, "stored bytes cannot hold the 4,000,000,128 that it claims"),
        (zipfile.ZIP_STORED, True, "its members claim more bytes than the file has"),
    ]:
        path = npz(tmp_path / "a.npz", ("w.npy", data), compression=compression)
        directory(path, len(data), claimed, stored=both)
        with pytest.raises(fv.CheckpointError, match=words):
            load_foreign(path)
    shorter = npy(np.zeros(1000), **{"(1000,)": "(1100,)"})
    path = npz(tmp_path / "a.npz", ("w.npy", shorter))
    directory(path, len(shorter), len(shorter) + 800, stored=False)
    with pytest.raises(fv.CheckpointError, match="its size in the zip's directory is wrong"):
        load_foreign(path)


def directory(path: Path, size: int, claimed: int, stored: bool) -> None:
    """Change the size (and, if asked, the stored size) of the only member in the zip's directory."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    assert int.from_bytes(data[entry + 24 : entry + 28], "little") == size
    data[entry + 24 : entry + 28] = claimed.to_bytes(4, "little")
    if stored:
        data[entry + 20 : entry + 24] = claimed.to_bytes(4, "little")
    path.write_bytes(data)


def test_a_damaged_npz_is_detected(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", w=np.zeros(1000))
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)
    with pytest.raises(fv.CheckpointError, match="'w' cannot be read: Bad CRC"):
        load_foreign(path)


def tensors(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES: dict[str, tuple[Any, bytes, str]] = {
    "truncated": ({"w": ENTRY}, bytes(7), "truncated"),
    "longer": ({"w": ENTRY}, bytes(9), "truncated"),
    "shape": ({"w": ENTRY | {"shape": [3]}}, bytes(8), "8 bytes cannot be of F32"),
    "huge": ({"w": ENTRY | {"shape": [1 << 62, 0], "data_offsets": [0, 0]}}, b"", "too large"),
    "overlap": ({"w": ENTRY, "v": ENTRY}, bytes(8), "overlap"),
    "gap": ({"w": ENTRY | {"data_offsets": [8, 16]}}, bytes(16), "gap"),
    "backwards": ({"w": ENTRY | {"data_offsets": [8, 0]}}, bytes(8), "cannot be"),
    "negative": ({"w": ENTRY | {"data_offsets": [-8, 0]}}, b"", "malformed"),
    "bool": ({"w": ENTRY | {"shape": [True, 2]}}, bytes(8), "malformed"),
    "dtype": ({"w": ENTRY | {"dtype": "F4"}}, bytes(8), "not one that NumPy can hold"),
    "list": ({"w": [1]}, bytes(8), "'w'"),
    "fields": ({"w": {"dtype": "F32"}}, bytes(8), "'w'"),
    "deep": (b'{"a":' + b"[" * 100_000, b"", "nested too deeply"),
    "no JSON": (b'{"a', b"", "cannot be imported as safetensors"),
}


@pytest.mark.parametrize("what", LIES)
def test_lies_in_safetensors_are_refused(what: str, tmp_path: Path) -> None:
    header, data, words = LIES[what]
    with pytest.raises(fv.CheckpointError, match=words):
        load_foreign(tensors(tmp_path / "a", header, data))
    (tmp_path / "b").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(fv.CheckpointError, match="longer than the file"):
        load_foreign(tmp_path / "b")


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path / "zero", tmp_path):
        with pytest.raises(fv.CheckpointError, match="not a file"):
            load_foreign(path)
    with pytest.raises(FileNotFoundError):
        load_foreign(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(fv.CheckpointError, match="is empty"):
        load_foreign(tmp_path / "empty")
    (tmp_path / "good").symlink_to(saved(tmp_path / "a.npz", w=np.ones(2)))
    assert load_foreign(tmp_path / "good")["w"].all()


@pytest.mark.parametrize("kind", ["h5", "npz", "safetensors"])
def test_mutilated_files_give_an_error_or_arrays_but_nothing_else(kind: str, tmp_path: Path) -> None:
    """Try every length, and random bytes. In a process of its own, because libhdf5 might crash."""
    code = f"""
import pathlib, random, resource, sys, warnings
import h5py, ml_dtypes, numpy as np, safetensors.numpy
from fastvar.checkpoint import CheckpointError, load_foreign
warnings.simplefilter("ignore")
folder = pathlib.Path({str(tmp_path)!r})
arrays = {{"a": np.ones((3, 4), np.float32), "b": np.arange(5)}}
good = folder / "good"
if {kind!r} == "h5":
    with h5py.File(good, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(f"group/{{name}}", data=array, compression="gzip" if name == "b" else None)
        file["opaque"] = np.ones(3, ml_dtypes.bfloat16)
        file["opaque"].attrs["dtype"] = "bfloat16"  # of variable length, as Keras has it
elif {kind!r} == "npz":
    with open(good, "wb") as stream:
        np.savez_compressed(stream, **arrays)
else:
    safetensors.numpy.save_file(arrays, good)
data = good.read_bytes()
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
rng = random.Random(1)
cases = [data[:n] for n in range(0, len(data), 1 + len(data) // 300)]
for _ in range(700):
    broken = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        broken[rng.randrange(len(broken))] = rng.choice([0, 1, 255, rng.randrange(256)])
    cases.append(bytes(broken))
counts = [0, 0]
for case in cases:
    (folder / "bad").write_bytes(case)
    try:
        load_foreign(folder / "bad")
        counts[0] += 1
    except CheckpointError:
        counts[1] += 1
print(len(cases), *counts)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    cases, read, refused = map(int, done.stdout.split())
    assert refused > 300
    assert read > 10
    assert cases == read + refused
