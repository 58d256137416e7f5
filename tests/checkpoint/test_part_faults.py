"""Sets of part files that are damaged, incomplete or hostile, and what a manager makes of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint import inspect_folder, parts, writer
from fastvar.checkpoint.bookkeeping import PARTS
from fastvar.checkpoint.file_format import Saved
from fastvar.checkpoint.folder import Folder
from fastvar.checkpoint.locks import Lock
from fastvar.checkpoint.manager import retain
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.retention import Retention
from fastvar.checkpoint.sets import CheckpointFile
from tests.support.managers import files
from tests.support.part_files import evenly, example, save_set, write_parts

SIZE = 40
COUNT = 3


def variables(value: float) -> dict[str, fv.Variable]:
    return {name: fv.Variable(np.full((size,), value), name=name) for name, size in [("a", SIZE), ("b", 7)]}


def manager(folder: Path, **options: Any) -> tuple[fv.CheckpointManager, dict[str, fv.Variable]]:
    held = variables(-1)
    return fv.CheckpointManager(fv.Checkpoint(held), folder, **options), held


def save_numbered(folder: Path, counter: int, keep: int | None = None) -> Path:
    """Save a set as the coordinator of a run does, whose tensors are all `counter`; keep some of the newest."""
    tensors, path = fv.Checkpoint(variables(counter)).collect()[0], folder / f"ckpt-{counter}.h5"
    save_set(path, tensors, COUNT, step=counter, saved=Saved("ab" * 16, counter))
    if keep:
        retain(str(path), Folder(folder, "ckpt"), Retention(keep))
    return path


def part_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.*.part-*"))


def flip(path: Path, name: str | None = None) -> None:
    """Flip a bit of a tensor of a file, or of its manifest."""
    with File(path) as file:
        at = file.entries[name].offset if name else file.record.manifest.offset
    data = bytearray(path.read_bytes())
    data[at or 0] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def of_another_set(path: Path) -> None:
    other = path.parent / "other" / "ckpt-1.h5"
    other.parent.mkdir()
    save_numbered(other.parent, 1)
    shutil.copy(part_files(other)[1], path)


def link(path: Path) -> None:
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")


def swapped(path: Path) -> None:
    shutil.copy(part_files(path.with_name("ckpt-2.h5"))[2], path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (os.unlink, "No such file or directory"),
    "truncated": (truncate, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "a flipped bit": (lambda path: flip(path, "variables/a"), "damaged tensors: 'variables/a'"),
    "a flipped bit of the manifest": (flip, "the manifest is damaged"),
    "another set": (of_another_set, "not the file that was saved with this set"),
    "another part": (swapped, "not the file that was saved with this set"),
    "a link": (link, "a link, which is not followed"),
    "a folder": (lambda path: (os.unlink(path), path.mkdir()), "a folder, not a file"),
    "a pipe": (lambda path: (os.unlink(path), os.mkfifo(path)), "not a file"),
}


@pytest.mark.timeout(20)  # a pipe, on which reading would block
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_part_is_named_and_an_older_set_restored(fault: str, tmp_path: Path) -> None:
    save_numbered(tmp_path, 1)
    path = save_numbered(tmp_path, 2)
    bad, (break_it, reason) = part_files(path)[1], FAULTS[fault]
    break_it(bad)
    with pytest.raises(fv.CheckpointError, match=rf"(?s){bad.name}: .*({reason})") as told:
        fv.checkpoint.verify(path)
    assert "'variables/a'" in str(told.value)
    assert "variables/a" in told.value.damaged
    assert {item.path for item in inspect_folder(tmp_path) if item.problem} == {str(path)}
    one, held = manager(tmp_path)
    with pytest.warns(RuntimeWarning, match=rf"(?s){bad.name}.*restored .*ckpt-1"):
        assert one.restore_or_initialize() == str(tmp_path / "ckpt-1.h5")
    assert [held["a"][0], held["b"][-1]] == [1, 1]
    restored = fv.Checkpoint(others := variables(-1))
    with pytest.raises(fv.CheckpointError, match=bad.name):
        restored.restore(path)
    assert others["a"][0] == others["b"][0] == -1


def test_every_bad_part_is_named(tmp_path: Path) -> None:
    path = save_numbered(tmp_path, 1)
    one, _, three = part_files(path)
    flip(one, "variables/a")
    flip(three, "variables/b")
    with pytest.raises(fv.CheckpointError, match=rf"{one.name}.*'variables/a'.*; .*{three.name}.*/b'") as told:
        fv.checkpoint.verify(path)
    assert told.value.damaged == ("variables/a", "variables/b")
    many = tmp_path / "many.h5"
    save_set(many, {"variables/w": np.arange(20.0)}, 20)
    for part in part_files(many):
        flip(part, "variables/w")
    with pytest.raises(fv.CheckpointError, match=r"; and 17 more files$"):
        fv.checkpoint.verify(many)


def test_a_commit_file_without_its_parts_is_no_checkpoint(tmp_path: Path) -> None:
    older, path = save_numbered(tmp_path, 1), save_numbered(tmp_path, 2)
    one, _ = manager(tmp_path)
    assert one.checkpoints == [str(older), str(path)]
    os.unlink(part_files(path)[0])  # after it has been seen whole
    assert one.checkpoints == [str(older)]
    assert manager(tmp_path)[0].checkpoints == [str(older)]


def test_retention_removes_the_commit_file_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save_numbered(tmp_path, 1)
    kept = [*part_files(first), first]
    removed: list[str] = []
    unlink, sync = os.unlink, os.fsync
    monkeypatch.setattr(os, "unlink", lambda path: (removed.append(os.path.basename(path)), unlink(path))[1])
    monkeypatch.setattr(os, "fsync", lambda descriptor: (removed.append("fsync"), sync(descriptor))[1])
    last = save_numbered(tmp_path, 2, keep=1)
    ours = removed[removed.index(first.name) :]
    assert ours[:2] == [first.name, "fsync"]
    assert sorted(ours[2:]) == sorted(path.name for path in kept[:-1])
    assert files(tmp_path) == sorted(path.name for path in [last, *part_files(last)])


def test_what_is_pinned_or_copied_keeps_its_parts(tmp_path: Path) -> None:
    pinned, copied = save_numbered(tmp_path, 1), save_numbered(tmp_path, 2)
    manager(tmp_path)[0].pin(str(pinned))
    os.link(copied, tmp_path / "best.h5")
    save_numbered(tmp_path, 3)
    save_numbered(tmp_path, 4, keep=1)
    assert {path.name for path in tmp_path.glob("*.h5") if ".part-" not in path.name} == {
        *("ckpt-1.h5", "ckpt-4.h5", "best.h5")
    }
    for path in (pinned, tmp_path / "best.h5"):
        fv.checkpoint.verify(path)
    assert not part_files(tmp_path / "ckpt-3.h5")


def test_the_next_save_removes_the_debris_of_a_killed_one(tmp_path: Path) -> None:
    whole = save_numbered(tmp_path, 1)
    write_parts(tmp_path / "ckpt-2.h5", example(), evenly(example(), 3))  # and then it was killed
    others = write_parts(tmp_path / "other.h5", example(), evenly(example(), 2))  # not of this manager
    damaged = save_numbered(tmp_path, 3)
    truncate(damaged)
    mine = {*files(tmp_path)} - {path.name for path in part_files(tmp_path / "ckpt-2.h5")}
    one, _ = manager(tmp_path)
    with pytest.warns(RuntimeWarning, match=damaged.name):
        assert one.restore_or_initialize() == str(whole)
    assert one.save(4) == str(tmp_path / "ckpt-4.h5")
    assert {*files(tmp_path)} == mine | {"ckpt-4.h5"}
    assert len(part_files(damaged)) == COUNT
    assert len(others) == len(part_files(tmp_path / "other.h5")) == 2


def test_a_set_that_replaces_another_removes_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    save_set(path, example(0), 4)
    save_set(path, example(1), 2, replace=True)
    assert len(part_files(path)) == 2
    with CheckpointFile(path) as file:
        np.testing.assert_array_equal(file.read("variables/bias"), example(1)["variables/bias"])
    with pytest.raises(FileExistsError):
        save_set(path, example(2), 2)
    fv.checkpoint.verify(path)


def test_a_file_that_replaces_a_set_removes_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it is durable, and not those of other sets, or of one that has a second commit file."""
    path, tensors = tmp_path / "a.h5", example()
    save_set(path, tensors, 2)
    shutil.copy(path, tmp_path / "copy.h5")
    save_set(tmp_path / "other.h5", tensors, 2)
    write_parts(path, tensors, evenly(tensors, 2))  # being written by another program
    before = files(tmp_path)
    checkpoint = fv.Checkpoint(w=fv.Variable([1.0]))
    checkpoint.save(path, overwrite=True)
    assert files(tmp_path) == before
    shutil.move(tmp_path / "copy.h5", path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        with pytest.raises(fv.CheckpointError):
            checkpoint.save(path, overwrite=True)
    assert files(tmp_path) == sorted({*before} - {"copy.h5"})
    checkpoint.save(path, overwrite=True)
    assert len([name for name in files(tmp_path) if name.startswith("a.")]) == 3
    assert len([name for name in files(tmp_path) if name.startswith("other.")]) == 3


def refused(*arguments: Any) -> None:
    raise OSError(5, "refused")


def test_a_set_that_is_removed_while_it_is_read(tmp_path: Path) -> None:
    path = save_numbered(tmp_path, 1)
    with CheckpointFile(path) as file:
        for one in [path, *part_files(path)]:
            one.unlink()
        with pytest.raises(FileNotFoundError):
            file.read("variables/a")


def test_parts_are_no_checkpoints_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_numbered(tmp_path, 1)
    assert [item.path for item in inspect_folder(tmp_path)] == [str(path)]
    assert Folder(tmp_path, "other").others() == [path.name]
    assert fv.checkpoint.inspect(part_files(path)[0]).tensors[0].shape == (SIZE // COUNT,)
    with pytest.raises(fv.CheckpointError, match=r"part-1-of-3\.h5: is one part of a set; restore the file"):
        fv.Checkpoint(variables(0)).restore(part_files(path)[0])
    with pytest.raises(FileNotFoundError, match=r"with a step there are ckpt-1\.h5'?:"):
        fv.Saver({"w": fv.Variable(1.0)}).restore(tmp_path / "ckpt")


# Hostile commit files: whatever their lists say, no other file is opened.

NAME = "a.0123456789abcdef.part-{}-of-2.h5"
FILES = [[NAME.format(number), "00" * 16, 5000] for number in (1, 2)]
GOOD = {"set": "0123456789abcdef", "files": FILES, "tensors": {"w": ["float32", [4], [[0, 0, 2], [1, 2, 4]]]}}


def with_name(name: str) -> dict[str, Any]:
    return {**GOOD, "files": [[name, *FILES[0][1:]], FILES[1]]}


def with_tensor(kind: Any, shape: Any, pieces: Any) -> dict[str, Any]:
    return {**GOOD, "tensors": {"w": [kind, shape, pieces]}}


HOSTILE: dict[str, Any] = {
    "nothing": None,
    "a number": 3,
    "no files": {**GOOD, "files": []},
    "no files and no tensors": {**GOOD, "files": [], "tensors": {}},
    "tensors of the wrong kind": {**GOOD, "tensors": []},
    "files of the wrong kind": {**GOOD, "files": {"a": 1}},
    "one file too few": {**GOOD, "files": FILES[:1]},
    "a root that is no hash": {**GOOD, "files": [[FILES[0][0], "zz", 5000], FILES[1]]},
    "a negative length": {**GOOD, "files": [[FILES[0][0], "00" * 16, -1], FILES[1]]},
    "another set": {**GOOD, "set": "f" * 16},
    "a name": {**GOOD, "tensors": {"../w": GOOD["tensors"]["w"]}},  # type: ignore[index]
    **{
        f"file {name!r}": with_name(name)
        for name in [
            *("/etc/passwd", "../" + FILES[0][0], "x/" + FILES[0][0], "/" + FILES[0][0], "\\" + FILES[0][0]),
            *(FILES[1][0], "b." + FILES[0][0], "", ".", FILES[0][0] + "\0", NAME.format("1/../1"), "trap"),
        ]
    },
    **{
        f"pieces {number}": with_tensor("float32", [4], pieces)
        for number, pieces in enumerate(
            [
                *([], [[0, 0, 4], [0, 4, 4]], [[0, 0, 2], [0, 2, 4]], [[0, 0, 2], [1, 1, 4]], [[0, 0, 5]]),
                *([[0, -1, 4]], [[2, 0, 4]], [[-1, 0, 4]], [[0, 0, 4.0]], [[False, 0, 4]], [[0, 0]], None),
                *([[0, 0, 1 << 70]], [[0, 4, 0]], [["0", 0, 4]], [[[0], 0, 4]]),
            ]
        )
    },
    "a huge shape": with_tensor("float32", [1 << 40, 1 << 40], [[0, 0, 1 << 80]]),
    "a negative shape": with_tensor("float32", [-2, -2], [[0, 0, 4]]),
    "a shape of floats": with_tensor("float32", [4.0], [[0, 0, 4]]),
    "a rank": with_tensor("float32", [1] * 33, [[0, 0, 1]]),
    "an object": with_tensor("object", [4], [[0, 0, 4]]),
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that are opened."""
    names: list[str] = []
    real = os.open

    def noted(path: Any, *arguments: Any, **options: Any) -> int:
        names.append(os.path.basename(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", noted)
    return names


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_list_opens_no_file(value: Any, tmp_path: Path, opened: list[str]) -> None:
    path = tmp_path / "ckpt-1.h5"
    writer.prepare(path, {}, {PARTS: value}, step=1, elsewhere=[])()
    (tmp_path / "trap").touch()
    opened.clear()
    with pytest.raises(fv.CheckpointError, match=r"ckpt-1\.h5: .*(malformed|'w': )"):
        CheckpointFile(path)
    assert opened == [path.name]
    with pytest.raises(fv.CheckpointError, match="no checkpoint is whole"):
        manager(tmp_path)[0].restore_or_initialize()
    assert {*opened} - {".fastvar-ckpt.lock"} == {path.name}


def forged(path: Path, tensors: dict[str, Any], own: dict[str, Any]) -> None:
    """Write a part with v, four float64, and a commit file with any list of tensors."""
    record = parts.write_part(path, parts.new_set(), 1, 1, {"v": parts.Slice((4,), 0, np.zeros(4))}, step=1)
    value = {"set": record["set"], "files": [[record[k] for k in ("file", "root", "length")]], "tensors": tensors}
    writer.prepare(path, own, {PARTS: value}, step=1, elsewhere=[], replace=True)()


@pytest.mark.parametrize(("name", "kind", "size"), [("w", "float64", 4), ("v", "float64", 3), ("v", "int64", 4)])
def test_a_part_that_does_not_hold_what_is_said(name: str, kind: str, size: int, tmp_path: Path) -> None:
    forged(tmp_path / "a.h5", {name: [kind, [size], [[0, 0, size]]]}, {})
    match = rf"part-1-of-1.h5: does not hold elements 0 to {size} of '{name}'"
    with CheckpointFile(tmp_path / "a.h5") as file, pytest.raises(fv.CheckpointError, match=match):
        file.read(name)


def test_a_tensor_cannot_be_in_both(tmp_path: Path) -> None:
    forged(tmp_path / "a.h5", {"v": ["float64", [4], [[0, 0, 4]]]}, {"v": np.zeros(4)})
    with pytest.raises(fv.CheckpointError, match="'v' is here and in a part"):
        CheckpointFile(tmp_path / "a.h5")


def test_the_lock_is_that_of_the_folder(tmp_path: Path) -> None:
    """A manager that saves here meanwhile is refused, and would not remove the parts."""
    folder = Folder(tmp_path, "ckpt")
    folder.lock.acquire()
    records = write_parts(tmp_path / "ckpt-1.h5", example(), evenly(example(), 2))
    with pytest.raises(fv.CheckpointError, match="is saving here"):
        manager(tmp_path)[0].save()
    parts.publish(tmp_path / "ckpt-1.h5", records, {}, {}, step=1, lock=folder.lock)
    fv.checkpoint.verify(tmp_path / "ckpt-1.h5")
    assert isinstance(folder.lock, Lock)
