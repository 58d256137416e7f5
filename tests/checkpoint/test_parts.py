"""Sets of part files: what some processes write, one or others read, whole or by ranges."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvar as fv
from fastvar.checkpoint import parts, reader, virtual
from fastvar.checkpoint.locks import Lock
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.cli.ending import DAMAGED
from tests.support.commands import run
from tests.support.part_files import evenly, example, save_set, slices, write_parts

OWN = {"variables/scalar": np.float64(2.5), "variables/none": np.zeros((3, 0)), "state/arrays/0": np.arange(4)}


def same_bits(one: Any, other: Any) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def as_arrays(own: Any) -> dict[str, Any]:
    return {name: np.asarray(array) for name, array in own.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_set_reads_as_one_checkpoint(count: int, tmp_path: Path) -> None:
    tensors, path = example(), tmp_path / "a.h5"
    own = as_arrays(OWN)
    records = save_set(path, tensors, count, {"data": {"position": 3}}, own, step=5)
    assert json.loads(json.dumps(records)) == records
    assert sorted(os.listdir(tmp_path)) == sorted([".fastvar-test.lock", "a.h5", *(r["file"] for r in records)])
    with CheckpointFile(path) as file:
        assert file.step == 5
        assert file.state["data"] == {"position": 3}
        assert file.entries.keys() == {*tensors, *own}
        assert file.size == path.stat().st_size + sum(record["length"] for record in records)
        for name, array in {**tensors, **own}.items():
            assert same_bits(file.read(name), array)
        small = file.read_small([*tensors])
        assert small == [array.tobytes() for array in tensors.values()]
        file.verify()
    for record in records:  # a part is a whole checkpoint, too
        with reader.File(tmp_path / record["file"]) as part:
            assert part.record.root == record["root"]
            part.verify()


SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)
DTYPES = st.sampled_from([np.dtype(kind) for kind in ("f4", "f8", "i1", "c8", ml_dtypes.bfloat16)])


@st.composite
def cut_tensors(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, list[int]]]:
    count, tensors, cuts = draw(st.integers(1, 5)), {}, {}
    for index in range(draw(st.integers(1, 3))):
        shape, dtype = draw(SHAPES), draw(DTYPES)
        size = int(np.prod(shape, dtype=int))
        name = f"variables/{'50% ü' * (index == 1)}{index}"
        tensors[name] = np.random.default_rng(size).integers(0, 100, shape).astype(dtype)
        cuts[name] = sorted(draw(st.lists(st.integers(0, size), min_size=count - 1, max_size=count - 1)))
    return tensors, cuts


@settings(max_examples=25, deadline=None)
@given(drawn=cut_tensors(), data=st.data())
def test_any_cuts_and_ranges(drawn: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    (tensors, cuts), path = drawn, tmp_path_factory.mktemp("any") / "a.h5"
    save_set(path, tensors, cuts)
    wanted = []
    for name, array in tensors.items():
        ends = sorted(data.draw(st.tuples(*[st.integers(0, array.size)] * 2)))
        wanted.append((name, ends[0], np.empty(ends[1] - ends[0], array.dtype)))
    with CheckpointFile(path) as file:
        for name, array in tensors.items():
            assert same_bits(file.read(name), array)
        file.read_ranges(wanted)
    for name, start, found in wanted:
        assert same_bits(found, tensors[name].reshape(-1)[start : start + found.size])
    with h5py.File(path) as file:
        for name, array in tensors.items():
            read = np.asarray(file[name][()])
            extended = read.dtype.kind == "u"
            assert same_bits(read.view(array.dtype) if extended else read, array)


def test_the_checksum_and_the_heaps_are_those_of_libhdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libhdf5 writes the same mapping; it reads many heaps."""
    layout = h5py.VirtualLayout((3, 4), "f8")
    layout[0:1, 1:4] = h5py.VirtualSource("b.h5", "w", (10,))[0:3]
    with h5py.File(tmp_path / "x", "w", libver=("earliest", "v110")) as file:
        file.create_virtual_dataset("w", layout)
    data = (tmp_path / "x").read_bytes()
    at = data.index(b"GCOL") + 16
    size = int.from_bytes(data[at + 8 : at + 16], "little")
    block = data[at + 16 : at + 16 + size]
    assert virtual.checksum(block[:-4]) == int.from_bytes(block[-4:], "little")
    monkeypatch.setattr(virtual, "_MOST", 2)
    tensors = {f"variables/{k}": np.arange(k + 1) for k in range(50)}
    save_set(tmp_path / "a.h5", tensors, 2)
    with h5py.File(tmp_path / "a.h5") as file:
        for name, array in tensors.items():
            np.testing.assert_array_equal(file[name][()], array)


@pytest.mark.parametrize("tool", [["h5dump"], ["h5ls", "-rd"]], ids=lambda tool: tool[0])
def test_tools_of_hdf5_read_it(tool: list[str], tmp_path: Path) -> None:
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    save_set(tmp_path / "a.h5", {"variables/w": np.arange(100, 112).reshape(3, 4)}, 5)
    told = subprocess.run([*tool, tmp_path / "a.h5"], check=False, capture_output=True, text=True, cwd="/")
    assert (told.returncode, told.stderr) == (0, "")
    for number in range(100, 112):
        assert str(number) in told.stdout


def test_every_piece_is_read_once(tmp_path: Path) -> None:
    """The bytes read are those of the pieces that have wanted elements."""
    w = np.arange(1000, dtype=np.float32)
    save_set(tmp_path / "a.h5", {"variables/w": w}, {"variables/w": [100, 600]})
    with CheckpointFile(tmp_path / "a.h5", check=False) as file:
        assert file.parts is not None
        assert [(p.part, p.start, p.stop) for p in file.parts.tensors["variables/w"].pieces] == [
            *((0, 0, 100), (1, 100, 600), (2, 600, 1000))
        ]
        low, high, inner = (np.empty(n, np.float32) for n in (100, 50, 200))
        assert file.read_ranges([("variables/w", 0, low)]) == 400
        assert file.read_ranges([("variables/w", 100, high), ("variables/w", 300, inner)]) == 2000
        assert file.read_ranges([("variables/w", 50, np.empty(100, np.float32))]) == 2400
        os.unlink(tmp_path / file.parts.files[2].name)  # no more is opened than is needed
        assert file.read_ranges([("variables/w", 100, np.empty(500, np.float32))]) == 2000
    np.testing.assert_array_equal(np.concatenate([low, high, inner]), np.r_[w[:150], w[300:500]])


def test_what_is_not_in_parts_has_ranges_too(tmp_path: Path) -> None:
    save_set(tmp_path / "a.h5", example(), 2, own={"variables/own": np.arange(12.0).reshape(3, 4)})
    wanted = np.empty(5)
    with CheckpointFile(tmp_path / "a.h5") as file:
        assert file.read_ranges([("variables/own", 4, wanted)]) == 96
    assert wanted.tolist() == [4, 5, 6, 7, 8]


def test_more_parts_than_are_open_at_a_time(tmp_path: Path) -> None:
    tensors = example()
    save_set(tmp_path / "a.h5", tensors, 20)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with CheckpointFile(tmp_path / "a.h5") as file:
        for _ in range(2):
            for name, array in tensors.items():
                assert same_bits(file.read(name), array)
        if before:
            assert len(os.listdir("/proc/self/fd")) <= before + 10
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_part_may_hold_nothing(tmp_path: Path) -> None:
    save_set(tmp_path / "a.h5", {"variables/w": np.arange(3)}, 5)
    fv.checkpoint.verify(tmp_path / "a.h5")
    assert fv.checkpoint.load_variable(tmp_path / "a.h5", "w").tolist() == [0, 1, 2]


# What one process does with a set.


def trained(steps: int = 3) -> tuple[fv.Variable, fv.optimizers.Adam, fv.Checkpoint]:
    w = fv.Variable(np.arange(600.0).reshape(20, 30), name="w")
    optimizer = fv.optimizers.Adam(0.1)
    for step in range(steps):
        optimizer.apply([np.full((20, 30), step + 1.0)], [w])
    return w, optimizer, fv.Checkpoint(w=w, optimizer=optimizer, data={"position": steps})


def save_as_set(checkpoint: fv.Checkpoint, path: Path, count: int = 3, **options: Any) -> None:
    """Save a checkpoint as a set, with its tensors in the parts."""
    tensors, arrays, state, step = checkpoint.collect()
    save_set(path, tensors, count, state, arrays, step=step, **options)


def test_a_whole_restore(tmp_path: Path) -> None:
    w, optimizer, checkpoint = trained()
    save_as_set(checkpoint, tmp_path / "a.h5")
    new, other, into = trained(0)
    report = into.restore(tmp_path / "a.h5")
    assert report.step == other.iterations == 3
    for k in range(2):
        other.apply([np.full((20, 30), k + 0.5)], [new])
        optimizer.apply([np.full((20, 30), k + 0.5)], [w])
    assert same_bits(new.numpy(), w.numpy())


def test_inspect_list_and_diff(tmp_path: Path) -> None:
    _, _, checkpoint = trained()
    path, whole = tmp_path / "a.h5", checkpoint.save(tmp_path / "whole.h5")
    save_as_set(checkpoint, path)
    found, same = fv.checkpoint.inspect(path, values=True), fv.checkpoint.inspect(whole, values=True)
    assert sorted(found.tensors, key=str) == sorted(same.tensors, key=str)
    assert (found.step, found.state, len(found.parts)) == (same.step, same.state, 3)
    assert found.size == sum(p.stat().st_size for p in tmp_path.glob("a*.h5"))
    assert sorted(fv.checkpoint.list_variables(path)) == sorted(fv.checkpoint.list_variables(whole))
    assert not fv.checkpoint.diff(path, whole)
    _, _, later = trained(4)
    assert [c.name for c in fv.checkpoint.diff(path, later.save(tmp_path / "later.h5")).changed] == [
        *("variables/w", "optimizer/w/momentum", "optimizer/w/velocity")
    ]


def test_conversions(tmp_path: Path) -> None:
    w, _, checkpoint = trained()
    path = tmp_path / "a.h5"
    save_as_set(checkpoint, path)
    fv.checkpoint.convert(path, tmp_path / "a.npz")
    assert same_bits(np.load(tmp_path / "a.npz")["w"], w.numpy())
    fv.checkpoint.convert(path, tmp_path / "one.h5", to="fastvar")
    assert not fv.checkpoint.diff(path, tmp_path / "one.h5")
    with reader.File(tmp_path / "one.h5") as one, CheckpointFile(path) as whole:
        assert one.entries.keys() == whole.entries.keys()
        assert one.saved == whole.saved
        assert not [keyword for keyword in one.state if keyword.startswith("$")]
    with pytest.raises(ValueError, match="a set becomes one whole file"):
        fv.checkpoint.convert(path, tmp_path / "two.h5", to="fastvar", weights_only=True)
    with pytest.raises(ValueError, match="is a checkpoint already"):
        fv.checkpoint.convert(tmp_path / "one.h5", tmp_path / "two.h5", to="fastvar")


def test_a_set_may_be_moved_renamed_and_linked_to(tmp_path: Path) -> None:
    tensors = example()
    (tmp_path / "old").mkdir()
    save_set(tmp_path / "old" / "a.h5", tensors, 3)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "a.h5").rename(tmp_path / "new" / "best.h5")
    (tmp_path / "latest.h5").symlink_to("new/best.h5")
    for path in (tmp_path / "new" / "best.h5", tmp_path / "latest.h5"):
        with CheckpointFile(path) as file:
            for name, array in tensors.items():
                assert same_bits(file.read(name), array)


# Mistakes of programs: an error before anything is published.


def test_parts_that_do_not_make_a_whole(tmp_path: Path) -> None:
    tensors, path = {"variables/w": np.arange(10.0)}, tmp_path / "a.h5"
    lock = Lock(str(tmp_path / "lock"))
    lock.acquire()

    def refused(records: Any, match: str, own: Any = None) -> None:
        with pytest.raises(ValueError, match=match):
            parts.publish(path, records, own or {}, {}, step=1, lock=lock)
        assert not path.exists()

    one, other = (write_parts(path, tensors, evenly(tensors, 2)) for _ in range(2))
    refused([], "there are no parts")
    refused(one[:1], r"it needs the parts 1 to 2, got \[1\]")
    refused([one[0], one[0]], r"it needs the parts 1 to 2, got \[1, 1\]")
    refused([one[0], other[1]], f"part-2-of-2.h5 is not a part of the set {one[0]['set']}")
    refused(one, "tensor 'variables/w' is in a part, too", {"variables/w": np.arange(3)})
    for first, second, match in [
        (slice(0, 4), slice(5, 10), "'variables/w': elements from 4 to 5 are in no part"),
        (slice(0, 6), slice(5, 10), "'variables/w': elements from 5 to 6 are in two parts"),
        (slice(0, 6), slice(6, 9), "'variables/w': elements from 9 to 10 are in no part"),
        (slice(1, 6), slice(6, 10), "'variables/w': elements from 0 to 1 are in no part"),
    ]:
        set_id, held = parts.new_set(), [parts.Slice((10,), r.start, np.zeros(10)[r]) for r in (first, second)]
        records = [
            parts.write_part(path, set_id, k, 2, {"variables/w": part}, step=1) for k, part in enumerate(held, 1)
        ]
        refused(records, match)
    for shape, dtype in [((5, 2), "f8"), ((10,), "f4")]:
        set_id = parts.new_set()
        halves = [parts.Slice((10,), 0, np.zeros(5)), parts.Slice(shape, 5, np.zeros(5, dtype))]
        records = [
            parts.write_part(path, set_id, k, 2, {"variables/w": half}, step=1) for k, half in enumerate(halves, 1)
        ]
        refused(records, r"'variables/w' is float64\[10\] in one part, and float")
    os.unlink(tmp_path / one[1]["file"])
    with pytest.raises(fv.CheckpointError, match=r"part-2-of-2.h5: No such file .*'variables/w'"):
        parts.publish(path, one, {}, {}, step=1, lock=lock)
    lock.release()
    with pytest.raises(ValueError, match="hold the lock of the folder"):
        parts.publish(path, other, {}, {}, step=1, lock=lock)
    assert not path.exists()


def test_slices_that_cannot_be_written(tmp_path: Path) -> None:
    def refused(held: Any, match: str, number: int = 1, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=match):
            parts.write_part(tmp_path / "a.h5", parts.new_set(), number, 2, held, step=1)
        assert os.listdir(tmp_path) == []

    four = np.zeros(4)
    for start, elements in [(-1, four), (8, four), (0, np.zeros(0)), (0, np.zeros(11))]:
        refused({"w": parts.Slice((10,), start, elements)}, "'w': the elements must be within its shape")
    refused({"w": parts.Slice((10,), 0, np.zeros(8)[::2])}, "'w': must be C-contiguous")
    refused({"w": parts.Slice((10,), 0, np.zeros(4, object))}, "dtype", kind=TypeError)
    refused({"a/../b": parts.Slice((10,), 0, four)}, "part that is empty")
    for number in (0, 3):
        refused({"w": parts.Slice((10,), 0, four)}, "number must be from 1 to count=2", number)


def test_parts_are_slices_of_their_tensors() -> None:
    tensors = example()
    cuts = evenly(tensors, 4)
    held = [slices(tensors, cuts, k) for k in range(4)]
    for name, array in tensors.items():
        np.testing.assert_array_equal(np.concatenate([one[name].elements for one in held]), array.reshape(-1))


def test_the_command_line(tmp_path: Path, capsys: Any) -> None:
    _, _, checkpoint = trained()
    path = tmp_path / "a.h5"
    save_as_set(checkpoint, path)
    code, out, _ = run(capsys, "inspect", path)
    assert (code, "with 3 part files" in out, "optimizer/w/velocity" in out) == (0, True, True)
    code, out, _ = run(capsys, "inspect", tmp_path)
    assert (code, "1 checkpoint, 0 damaged" in out) == (0, True)
    assert run(capsys, "convert", path, tmp_path / "one.h5", "--to", "fastvar")[0] == 0
    assert run(capsys, "diff", path, tmp_path / "one.h5")[0] == 0
    bad = next(tmp_path.glob("*part-2-of-3.h5"))
    os.truncate(bad, 100)
    code, out, _ = run(capsys, "verify", path)
    assert (code, out.count("\n")) == (DAMAGED, 1)
    assert bad.name in out
    assert "'variables/w'" in out
