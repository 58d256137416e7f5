"""Files restore exactly what was written, or an error names what is wrong."""

import dataclasses
import errno
import json
import math
import os
import shutil
import subprocess
import time
import tracemalloc

import h5py
import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvar.checkpoint import file_format, layout, reader, writer

SAVED = file_format.Saved("0123456789abcdef" * 2, 7)
DTYPES = [np.dtype(getattr(ml_dtypes, name, name)) for name in file_format.NATIVE + file_format.EXTENDED]
RANDOM = np.random.default_rng(0)
SHAPES = [(), (1,), (3, 5), (0,), (2, 0, 3), (1,) * 32]


def bits(dtype, shape):
    """Return an array of random bits (booleans are 0 or 1)."""
    dtype = np.dtype(dtype)
    array = np.frombuffer(RANDOM.bytes(dtype.itemsize * math.prod(shape)), np.uint8)
    return (array & 1 if dtype.kind == "b" else array).view(dtype).reshape(shape)


def same(array, expected):
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
    assert array.tobytes() == expected.tobytes()


@pytest.fixture
def small(tmp_path):
    tensors = {
        "variables/a/whose_name_leaves_room_for_others": bits("f4", (3, 5)),
        "variables/b": bits("i2", (7,)),
    }
    writer.write(tmp_path / "old", tensors, {"x": 1}, step=5, saved=SAVED)
    return tmp_path / "old"


def verify(path):
    with reader.File(path) as file:
        file.verify()


def test_round_trip_of_every_dtype_and_shape(tmp_path):
    tensors = {f"v/{t}/{len(s)}/{sum(s)}": bits(t, s) for t in DTYPES for s in SHAPES}
    tensors["v/big"] = bits("f4", (3 << 18,))  # larger than one read or write
    tensors["v/aligned"] = bits("u1", (file_format.LARGE + 1,))
    writer.write(tmp_path / "x", tensors, {}, step=3, saved=SAVED)
    with reader.File(tmp_path / "x") as file:
        assert (file.step, file.saved, list(file.entries)) == (3, SAVED, list(tensors))
        file.verify()
        for name, expected in tensors.items():
            same(file.read(name), expected)
            assert (file.entries[name].offset is None) == (expected.size == 0)
        assert file.entries["v/big"].offset % 4096 == file.entries["v/aligned"].offset % 4096 == 0
    with h5py.File(tmp_path / "x") as h5:
        for name, expected in tensors.items():
            value = h5[name][()]
            if expected.dtype.name in file_format.EXTENDED:
                assert h5[name].attrs["dtype"].decode() == expected.dtype.name
                value = np.asarray(value).view(expected.dtype)
            same(np.asarray(value), expected)
        assert list(json.loads(h5["manifest"][()])) == list(tensors)
        assert json.loads(h5["state/json"][()]) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
LETTERS = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
NAMES = st.lists(st.text(LETTERS, max_size=9), max_size=4, unique=True)
ARRAYS = hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0))
ARRAYS = ARRAYS.filter(lambda array: array.dtype.name in file_format.NATIVE)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), state=st.dictionaries(st.text(), JSON))
def test_round_trip_of_anything(data, state, tmp_path_factory):
    tensors = {f"v/-{name}": data.draw(ARRAYS) for name in data.draw(NAMES)}
    path = tmp_path_factory.mktemp("any") / "x"
    writer.write(path, tensors, state, step=2**64 - 1)
    with reader.File(path) as file:
        assert repr(file.state) == repr(state)
        for name, array in tensors.items():
            same(file.read(name), array.astype(array.dtype.newbyteorder("<")))


def test_state_of_any_size(tmp_path):
    for size in (0, 4000, 4100, 100_000):
        state = {"big": 2**200, "floats": [math.inf, -math.inf, -0.0, 5e-324], "text": "ü" * size}
        writer.write(tmp_path / "x", {"state/rng/key": np.arange(3)}, state, step=0, replace=True)
        with reader.File(tmp_path / "x") as file:
            assert repr(file.state) == repr(state)


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump(small):
    def dump(*arguments):
        return subprocess.check_output(["h5dump", *arguments, small], text=True)

    assert "/variables/a/whose_name_leaves_room_for_others" in dump("-n")
    with reader.File(small) as file:
        values = ", ".join(str(value) for value in file.read("variables/b"))
    assert values in dump("-d", "/variables/b")
    assert '"x": 1' in dump("-d", "/state/json")


def test_every_flipped_bit_is_detected(small):
    with reader.File(small) as file:
        entries = file.entries.items()
    owner = {entry.offset + at: (name,) for name, entry in entries for at in range(entry.length)}
    content = small.read_bytes()
    with small.open("r+b", buffering=0) as raw:
        for at in range(len(content)):
            for bit in range(8) if at in owner or at < file_format.USER_BLOCK else [at % 8]:
                os.pwrite(raw.fileno(), bytes([content[at] ^ 1 << bit]), at)
                with pytest.raises(file_format.CheckpointError, match="old") as caught:
                    verify(small)
                assert caught.value.damaged == owner.get(at, ()), at
            os.pwrite(raw.fileno(), content[at : at + 1], at)
    verify(small)


def test_every_truncation_is_detected(small):
    content = small.read_bytes()
    for length in reversed(range(len(content))):
        os.truncate(small, length)
        with pytest.raises(file_format.CheckpointError, match="old"):
            reader.File(small)
    small.write_bytes(content + b"\0")
    with pytest.raises(file_format.CheckpointError, match="another program"):
        reader.File(small)


def test_reading_damaged_and_missing(small):
    with reader.File(small) as file:
        content = bytearray(small.read_bytes())
        for entry in file.entries.values():
            content[entry.offset] ^= 1
            small.write_bytes(content)
    with reader.File(small) as file:
        with pytest.raises(
            file_format.CheckpointError, match="'variables/a/whose_name_leaves_room_for_others', 'variables/b'"
        ):
            file.verify()
        for name, message in [("variables/b", "damaged.*'variables/b'"), ("c", "no tensor 'c'")]:
            with pytest.raises(file_format.CheckpointError, match=message):
                file.read(name)


def test_existing_file_is_not_replaced(small, monkeypatch):
    content, exists = small.read_bytes(), os.path.lexists
    for case in ("before", "meanwhile", "meanwhile, no links"):  # when the other one appeared
        if case != "before":
            answers = iter([False])
            monkeypatch.setattr(os.path, "lexists", lambda path, first=answers: next(first, exists(path)))
        if case == "meanwhile, no links":
            monkeypatch.setattr(os, "link", failing(os.link, errno.EPERM, 1))
        with pytest.raises(FileExistsError, match="old"):
            writer.write(small, {}, {}, step=0)
        assert os.listdir(small.parent) == ["old"]
        assert small.read_bytes() == content
    writer.write(small, {}, {}, step=9, replace=True)
    with reader.File(small) as file:
        assert file.step == 9


def failing(call, code, which):
    """Wrap `call` so that call number `which` fails; `seen` counts calls."""

    def fake(*arguments, **keywords):
        fake.seen += 1
        if fake.seen != which:
            return call(*arguments, **keywords)
        if call is os.close:  # it closes, but raises an error
            call(*arguments)
        raise OSError(code, os.strerror(code))

    fake.seen = 0
    return fake


CALLS = ["open", "posix_fallocate", "pwrite", "fsync", "close", "link", "unlink", "replace"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_any_failing_call(name, links, replace, small, monkeypatch):
    before, path = small.read_bytes(), small if replace else small.parent / "new"
    tensors = {"v": np.ones(3), "w": np.ones(1 << 15)}
    for k in range(1, 99):
        with monkeypatch.context() as patch:
            if not links:
                patch.setattr(os, "link", failing(os.link, errno.EPERM, 1))
            fake = failing(getattr(os, name), errno.ENOSPC, k)
            patch.setattr(os, name, fake)
            try:
                writer.write(path, tensors, {}, step=k, replace=replace)
                break
            except file_format.CheckpointError as caught:
                error = caught
        assert error.errno == errno.ENOSPC
        assert f"{path}: not saved: {os.strerror(errno.ENOSPC)}" in str(error)
        assert os.listdir(small.parent) == ["old"]
        if small.read_bytes() != before:  # only if the fsync or close of the directory failed
            assert replace
            assert name in {"open", "fsync", "close"}
            verify(small)
    # The last close releases the lock of a temporary file that already has its final name: it may fail.
    assert fake.seen < k or name == "close"
    verify(path)


def test_short_writes_and_reads_and_no_fallocate(tmp_path, monkeypatch):
    write, read = os.pwrite, os.preadv

    def third(data):
        return data[: len(data) // 3 + 1]

    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, third(data), at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: read(fd, [third(parts[0])], at))
    monkeypatch.setattr(os, "posix_fallocate", failing(os.posix_fallocate, errno.EOPNOTSUPP, 1))
    tensors = {"v/small": np.arange(3), "v/large": np.arange(1 << 18)}
    writer.write(tmp_path / "x", tensors, {}, step=0)
    with reader.File(tmp_path / "x") as file:
        for name, array in tensors.items():
            same(file.read(name), array)


def test_same_bytes_each_time_and_the_umasks_mode(tmp_path):
    os.umask(umask := os.umask(0))
    tensors = {f"v/{i}": bits("f4", (i, 3)) for i in range(9)}
    for name, saved in {"a": SAVED, "b": SAVED, "c": None}.items():
        layout.tensors_of.cache_clear()
        writer.write(tmp_path / name, tensors, {"a": 1}, step=1, saved=saved)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask
        time.sleep(1.1 if name == "a" else 0)  # time stamps have a resolution of seconds
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a[file_format.USER_BLOCK :] == c[file_format.USER_BLOCK :]


def forge(path, edit, **fields):
    """Rewrite a file with a manifest changed by `edit`, and other fields, with valid hashes."""
    content = bytearray(path.read_bytes())
    old = file_format.Record.unpack(bytes(content))
    offset, length, _ = old.manifest
    manifest = json.loads(content[offset : offset + length])
    edit(manifest)
    text = json.dumps(manifest, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    content[offset : offset + length] = text
    section = file_format.Section(offset, length, xxhash.xxh3_128_hexdigest(text))
    new = dataclasses.replace(old, **{"manifest": section, **fields})
    path.write_bytes(new.pack() + content[file_format.USER_BLOCK :])


HOSTILE = [  # changes of the entry: dtype int16, shape [7], length 14
    *({"shape": shape} for shape in ([1 << 50], [True], "7", None)),
    *({"offset": offset} for offset in (1 << 40, 0, 4096, 8192, -14, None)),
    *({"shape": [1 << 50], "length": 2 << 50}, {"shape": [1] * 40, "length": 2}, {"length": 14.0}),
    *({"shape": [1 << 32] * 2 + [0], "length": 0, "offset": None}, {"dtype": "object"}, {"x": 1}),
]


@pytest.mark.parametrize("version", file_format.READABLE)
@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_hostile_manifest(change, version, small):
    def edit(manifest):
        del manifest["variables/a/whose_name_leaves_room_for_others"]  # room for the other
        entry = dict(zip(file_format.Entry._fields, manifest["variables/b"], strict=True)) | change
        manifest["variables/b"] = entry if version == 1 else [*entry.values()]

    forge(small, edit, version=version)
    tracemalloc.start()
    with pytest.raises(file_format.CheckpointError, match=r"tensor 'variables/b': |overlap|end at|metad"):
        reader.File(small)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("row", [None, 5, "abcde", {}, [], {"a": 1, "b": [], "c": 3, "d": 4, "e": ""}, [[]] * 5])
@pytest.mark.parametrize("version", file_format.READABLE)
def test_a_manifest_of_something_else(row, version, small):
    forge(
        small,
        lambda manifest: manifest.update({"variables/a/whose_name_leaves_room_for_others": row}),
        version=version,
    )
    with pytest.raises(
        file_format.CheckpointError,
        match=r"tensor 'variables/a/whose_name_leaves_room_for_others': its entry .* is malformed",
    ):
        reader.File(small)


@pytest.mark.parametrize("version", [0, 4, 1 << 31])
def test_another_format_version(version, small):
    forge(small, lambda manifest: None, version=version)
    with pytest.raises(
        file_format.CheckpointError, match=f"format version {version} is not among .*update fastvar"
    ):
        reader.File(small)


def test_hostile_record_and_foreign_files(small):
    content = small.read_bytes()
    for section in [(4096, 1 << 60), (1 << 63, 4096), (0, 4096), (5000, 1), (4096, 0)]:
        for name in ("manifest", "state"):
            forge(small, lambda manifest: None, **{name: file_format.Section(*section, "0" * 32)})
            with pytest.raises(file_format.CheckpointError, match="old"):
                reader.File(small)
            small.write_bytes(content)
    for foreign in (b"", b"x", bytes(9000), b"{}" * 9000):
        small.write_bytes(foreign)
        with pytest.raises(file_format.CheckpointError, match=r"not written by fastvar|is empty"):
            reader.File(small)
    for block in (0, 512, 4096):
        with h5py.File(small, "w", userblock_size=block) as file:
            file["x"] = np.ones(9)
        with pytest.raises(file_format.CheckpointError, match="HDF5 file was not written by fastvar"):
            reader.File(small)
    with pytest.raises(FileNotFoundError, match="absent"):
        reader.File(small.parent / "absent")


BAD_NAMES = ["", "/a", "a/", "a//b", ".", "a/../b", "a\0b", "\ud800", "x" * 5000]
TAKEN = [["manifest"], ["state"], ["state/json"], ["state/json/x"], ["a", "a/b"], ["a/b/c", "a"]]


@pytest.mark.parametrize("names", [*([name] for name in BAD_NAMES), *TAKEN])
def test_names(names, tmp_path):
    with pytest.raises(ValueError, match=r"must|both|own"):
        writer.write(tmp_path / "x", dict.fromkeys(names, np.ones(1)), {}, step=0)
    assert not os.listdir(tmp_path)


def test_bad_arguments(tmp_path):
    array = np.ones((2, 3))
    cyclic = []
    cyclic.append(cyclic)
    for tensor in (array.T, 1.0, np.array([object()]), np.array(["text"]), np.empty((1,) * 33)):
        with pytest.raises((TypeError, ValueError), match="'t'"):
            writer.write(tmp_path / "x", {"t": tensor}, {}, step=0)
    for value in ((1, 2), [{1: 2}], np.ones(2), cyclic, 10**5000, {"a": {1}}):
        with pytest.raises((TypeError, ValueError), match="state"):
            writer.write(tmp_path / "x", {}, {"s": value}, step=0)
    with pytest.raises(TypeError, match="names"):
        writer.write(tmp_path / "x", {1: array}, {}, step=0)
    for step in (-1, 1 << 64):
        with pytest.raises(ValueError, match="step"):
            writer.write(tmp_path / "x", {}, {}, step=step)
    assert not os.listdir(tmp_path)


def test_many_long_names(tmp_path):
    tensors = {f"v/{'n' * 900}/{i}/{'m' * 900}": np.full(3, i) for i in range(300)}
    writer.write(tmp_path / "x", tensors, {}, step=0)
    verify(tmp_path / "x")
    with h5py.File(tmp_path / "x") as file:
        assert all(file[name][0] == array[0] for name, array in tensors.items())
