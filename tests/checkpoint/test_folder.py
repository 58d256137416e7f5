"""The folder of a manager: its path, and other files in it."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint import file_format, writer
from tests.support.managers import files, manager


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Start in the folder `here`; the returned function changes to the folder `there`."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return lambda: monkeypatch.chdir(tmp_path / "there")


@pytest.mark.parametrize("given", ["run", "./run/", Path("run"), b"run", "../here/run", "~"])
def test_a_relative_folder_stays_where_it_was(given: Any, elsewhere: Any, tmp_path: Path) -> None:
    w, folder = fv.Variable([1.0]), (tmp_path / "here" / os.fsdecode(given)).resolve()
    one = manager(given, w, max_to_keep=2)
    elsewhere()
    paths = [str(one.save(step)) for step in range(3)]
    one.save(3, blocking=False)
    one.wait()
    one.pin(one.checkpoints[0])
    two = manager(folder, w)
    with pytest.raises(fv.CheckpointError, match="is saving here"):
        two.save()
    assert one.restore_or_initialize() == one.latest_checkpoint
    assert os.path.isabs(one.directory)
    assert os.path.samefile(one.directory, folder)
    assert all(os.path.isabs(path) for path in paths)
    assert files(folder) == ["ckpt-3.h5", "ckpt-3.h5.pin", "ckpt-4.h5"]
    assert not any((tmp_path / "there").iterdir())


def test_a_folder_that_is_left_while_a_save_is_under_way(
    elsewhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, left = os.fsync, threading.Event()

    def held(descriptor: int) -> None:
        assert left.wait(60)
        sync(descriptor)

    one = manager("run", fv.Variable([1.0]))  # type: ignore[arg-type]
    monkeypatch.setattr(os, "fsync", held)
    one.save(1, blocking=False)
    elsewhere()
    left.set()
    one.close()
    assert files(tmp_path / "here" / "run") == ["ckpt-1.h5"]


def test_paths_that_are_returned_mean_the_same_elsewhere(elsewhere: Any, tmp_path: Path) -> None:
    w = fv.Variable([1.0, 2.0], name="w")
    path = fv.Checkpoint(variables=[w]).save("a.h5")
    saver = fv.Saver([w], max_to_keep=1)
    first = saver.save("model", global_step=1)
    fv.checkpoint.convert(path, "a.npz")
    elsewhere()
    w[...] = 0
    assert fv.Checkpoint(variables=[w]).restore(path).step == 0
    assert w.value.tolist() == [1, 2]
    assert saver.last_checkpoints == [first]
    saver.save("model", global_step=2)
    assert files(tmp_path / "here") == ["a.h5", "a.npz"]
    assert files(tmp_path / "there") == ["model-2.h5"]


def test_a_path_that_can_only_be_a_folder_is_no_file(elsewhere: Any, tmp_path: Path) -> None:
    checkpoint = fv.Checkpoint(w=fv.Variable([1.0]))
    for path in ("new/", "", ".", "old/."):
        (tmp_path / "here" / "old").mkdir(exist_ok=True)
        with pytest.raises(OSError, match=r"new|here|old"):
            checkpoint.save(path)
    assert files(tmp_path / "here" / "old") == []


def test_only_checkpoints_of_this_folder_are_pinned(tmp_path: Path) -> None:
    one = manager(tmp_path / "one", fv.Variable([1.0]))
    other = str(manager(tmp_path / "other", fv.Variable([1.0])).save())
    path = str(one.save())
    for act in (one.pin, one.unpin):
        with pytest.raises(FileNotFoundError, match="not in the folder"):
            act(other)
    one.pin(f"{tmp_path}/other/../one/{os.path.basename(path)}")
    assert files(tmp_path / "one") == ["ckpt-1.h5", "ckpt-1.h5.pin"]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("s")  # its path must be short; tests are in the folder
    os.rename("s", path)


STRANGERS: dict[str, Callable[[Path], object]] = {
    "link in a circle": lambda path: path.symlink_to(path.name),
    "socket": _socket,
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
}
JUNK: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("notes"),
    "nothing": Path.touch,
    "link to nothing": lambda path: path.symlink_to("gone"),
}
NAMES = ["ckpt-5.h5", *(f"ckpt-{number}.h5" for number in (2**64 - 1, 2**64 - 2, 2**63, 10**100))]
WIDE = "\N{FULLWIDTH DIGIT THREE}"  # a digit, too
BY_HAND = ["ckpt-007.h5", f"ckpt-{WIDE}.h5"]


@pytest.mark.timeout(20)  # a pipe, on which reading would block
@pytest.mark.parametrize("name", NAMES + BY_HAND)
@pytest.mark.parametrize("kind", [*STRANGERS, *JUNK])
def test_strangers_are_left_alone_and_named(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    w, path = fv.Variable([1.0]), tmp_path / name
    (STRANGERS | JUNK)[kind](path)
    before = os.lstat(path)
    one = manager(tmp_path, w, max_to_keep=1, init_fn=lambda: w.assign([7.0]))
    first = 6 if name == "ckpt-5.h5" else 1
    if first == 6 and kind in JUNK:  # it may have been a checkpoint: no run starts anew beside it
        with pytest.raises(fv.CheckpointError, match=r"no checkpoint is whole.*\n.*ckpt-5\.h5"):
            one.restore_or_initialize()
    else:
        with pytest.warns(RuntimeWarning, match=rf"{re.escape(name)}: .*; it is left alone"):
            assert one.restore_or_initialize() is None
        assert w[0] == 7
    for step in range(2):
        w[...] = step
        one.save(step)
    one.close()
    assert files(tmp_path) == sorted([name, f"ckpt-{first + 1}.h5"])
    with pytest.warns(RuntimeWarning, match=re.escape(name)):
        assert manager(tmp_path, w).restore_or_initialize() == str(tmp_path / f"ckpt-{first + 1}.h5")
    assert w[0] == 1
    after = os.lstat(path)
    assert (after.st_mode, after.st_ino, after.st_size, after.st_mtime) == (
        *(before.st_mode, before.st_ino, before.st_size, before.st_mtime),
    )
    listed = {os.path.basename(item.path): item.problem for item in fv.checkpoint.inspect_folder(tmp_path)}
    assert listed.pop(f"ckpt-{first + 1}.h5") is None
    assert sorted(listed) == ([name] if kind in JUNK else [])
    assert all(listed.values())


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_of_other_names_stop_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("other.h5", "ckpt-1.h5.pin", "ckpt-9.h5.pin", ".fastvar-0123456789abcdef.tmp"):
        STRANGERS[kind](tmp_path / name)
    one = manager(tmp_path, fv.Variable([1.0]), max_to_keep=1)
    assert one.restore_or_initialize() is None
    for step in range(3):
        one.save(step)
    assert sorted(set(files(tmp_path)) - {"other.h5", "ckpt-9.h5.pin", ".fastvar-0123456789abcdef.tmp"}) == [
        *("ckpt-1.h5", "ckpt-1.h5.pin", "ckpt-3.h5")  # its entries stay pinned
    ]
    assert len(files(tmp_path)) == 6


def test_checkpoints_named_by_hand_are_found_and_stay(tmp_path: Path) -> None:
    w = fv.Variable([0.0])
    one = manager(tmp_path, w, max_to_keep=1)
    for step in (1, 2, 3):
        w[...] = step
        Path(str(one.save(step))).rename(tmp_path / f"ckpt-{['007', WIDE, 2**64][step - 1]}.h5")
    assert one.restore_or_initialize() == str(tmp_path / f"ckpt-{2**64}.h5")
    assert w[0] == 3
    assert [one.save(step) for step in (4, 5)] == [str(tmp_path / f"ckpt-{count}.h5") for count in (4, 5)]
    assert files(tmp_path) == sorted(["ckpt-007.h5", f"ckpt-{WIDE}.h5", f"ckpt-{2**64}.h5", "ckpt-5.h5"])


def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, opened = fv.Variable([0.0]), os.open
    one = manager(tmp_path, w)
    good, bad = (str(one.save(step)) for step in range(2))
    one.close()

    def deny(path: Any, *arguments: Any, **options: Any) -> int:
        if os.fspath(path) == bad:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", deny)
    with pytest.warns(RuntimeWarning, match=r"ckpt-2\.h5: Permission denied; restored .*ckpt-1"):
        assert one.restore_or_initialize() == good
    listed = {item.path: item.problem for item in fv.checkpoint.inspect_folder(tmp_path)}
    assert listed == {good: None, bad: f"{bad}: Permission denied"}
    again = str(one.save())
    assert os.path.basename(again) == "ckpt-3.h5"
    os.unlink(good)
    os.unlink(again)
    with pytest.raises(fv.CheckpointError, match=r"no checkpoint is whole.*\n.*ckpt-2\.h5: Permission denied"):
        one.restore_or_initialize()


def test_after_the_last_count_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ckpt-1.h5"
    writer.write(
        path, {"variables/w": np.ones(1)}, {}, step=1, saved=file_format.Saved("ab" * 16, file_format.MAX_COUNTER)
    )
    one = manager(tmp_path, fv.Variable([0.0]))
    assert one.restore_or_initialize() == str(path)
    with pytest.raises(fv.CheckpointError, match="the largest possible count"):
        one.save()


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_file_is_not_replaced(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint, path = fv.Checkpoint(w=fv.Variable([1.0])), tmp_path / "a.npz"
    good = checkpoint.save("good.h5")
    STRANGERS[kind](path)
    before = os.lstat(path)
    for act in (checkpoint.save, lambda path, overwrite: fv.checkpoint.convert(good, path, overwrite=overwrite)):
        with pytest.raises(fv.CheckpointError, match=r"a\.npz: not saved: "):
            act(path, overwrite=True)
    assert os.lstat(path) == before
    assert files(tmp_path) == ["a.npz", "good.h5"]


def test_an_error_of_a_restored_object_is_not_taken_for_one_of_the_file(tmp_path: Path) -> None:
    class Reader:
        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            open(tmp_path / "none").close()

    one = fv.CheckpointManager(fv.Checkpoint(reader=Reader()), tmp_path)
    one.save(1)
    with pytest.raises(FileNotFoundError, match="none"):
        one.restore_or_initialize()
