"""Locks and debris: one program at a time saves into a folder, and only abandoned files are removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import fastvar as fv
from fastvar.checkpoint import locks, publishing
from tests.support.managers import files, manager, run


def test_one_manager_saves_and_the_other_is_told_who(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    one, two = manager(tmp_path, w), manager(tmp_path, w)
    one.save(1)
    with pytest.raises(fv.CheckpointError, match=rf"not saved: pid {os.getpid()} on .* is saving here \(this"):
        two.save(2)
    with pytest.warns(RuntimeWarning, match=rf"this manager cannot save: pid {os.getpid()} on .* is saving here"):
        assert two.restore_or_initialize() == one.latest_checkpoint  # reading needs no lock
    with (
        pytest.raises(fv.CheckpointError, match=rf"not saved: pid {os.getpid()} on .* is saving here"),
        two,
    ):
        pass
    code = "fv.CheckpointManager(fv.Checkpoint(w=fv.Variable([1.0])), sys.argv[1]).save(3)"
    other = run(code, tmp_path)
    assert other.returncode == 1
    assert f"CheckpointError: {tmp_path}: not saved: pid {os.getpid()} on " in other.stderr
    one.close()
    assert run(code, tmp_path).returncode == 0
    two.save(4)
    del two
    one.save(5)  # an object that is gone holds no lock
    assert len(one.checkpoints) == 4
    assert one.save(6) is not None


@pytest.mark.parametrize("way", ["restores", "is entered", "starts afresh"])
def test_the_lock_is_taken_before_the_first_save(way: str, tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    if way == "restores":
        with manager(tmp_path, w) as before:
            before.save(1)
    one, two = manager(tmp_path, w), manager(tmp_path, w)
    if way == "is entered":
        one.__enter__()
    else:
        assert (one.restore_or_initialize() is None) == (way == "starts afresh")
    code = """
import warnings
warnings.simplefilter("error")
manager = fv.CheckpointManager(fv.Checkpoint(w=fv.Variable([1.0])), sys.argv[1])
for way in (manager.restore_or_initialize, manager.__enter__, manager.save):
    try:
        way()
    except (fv.CheckpointError, RuntimeWarning) as error:
        print(error)
"""
    told = run(code, tmp_path).stdout.splitlines()
    assert [
        f"{tmp_path}: {what}: pid {os.getpid()} on " in line
        for what, line in zip(("this manager cannot save", "not saved", "not saved"), told, strict=True)
    ] == [True] * 3
    one.close()
    assert two.save(2) is not None


def test_a_restore_that_fails_holds_no_lock(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    one, other = manager(tmp_path, w), manager(tmp_path, fv.Variable([1.0, 2.0]))
    one.save(1)
    one.close()
    with pytest.raises(ValueError, match="nothing was changed"):
        other.restore_or_initialize()
    assert one.save(2) is not None
    one.close()
    with other:
        with pytest.raises(ValueError, match="nothing was changed"):
            other.restore_or_initialize()
        with pytest.raises(fv.CheckpointError, match="is saving here"):  # its owner still holds it
            one.save(3)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["folder", "link", "pipe", "link to nothing"])
def test_what_stands_where_the_lock_should_is_left_alone(kind: str, tmp_path: Path) -> None:
    w, lock, mine = fv.Variable([1.0]), tmp_path / "run" / ".fastvar-ckpt.lock", tmp_path / "mine.txt"
    mine.write_text("mine")
    with manager(tmp_path / "run", w) as before:
        path = before.save(1)
    lock.unlink()
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(mine if kind == "link" else tmp_path / "none")
    one = manager(tmp_path / "run", w)
    with pytest.warns(RuntimeWarning, match=r"\.fastvar-ckpt\.lock: this manager cannot save: "):
        assert one.restore_or_initialize() == path
    with pytest.raises(fv.CheckpointError, match=r"\.fastvar-ckpt\.lock: not saved: "):
        one.save(2)
    assert one.checkpoints == [path]
    assert mine.read_text() == "mine"
    assert files(tmp_path) == ["mine.txt", "run"]


def test_of_eight_processes_one_saves_and_seven_are_told_who(tmp_path: Path) -> None:
    code = """
import multiprocessing

def work(start, results, done):
    manager = fv.CheckpointManager(fv.Checkpoint(w=fv.Variable([1.0])), sys.argv[1])
    start.wait()
    try:
        manager.save(1)
        results.put(("saved", str(os.getpid())))
    except fv.CheckpointError as error:
        results.put(("told", str(error)))
    done.wait()  # with the lock, if it has it

context = multiprocessing.get_context("fork")
start, done, results = context.Barrier(8), context.Barrier(9), context.Queue()
children = [context.Process(target=work, args=(start, results, done)) for _ in range(8)]
for child in children:
    child.start()
said = [results.get(timeout=30) for _ in children]
done.wait()
for child in children:
    child.join()
(winner,) = [text for kind, text in said if kind == "saved"]
told = [text for kind, text in said if kind == "told"]
assert len(told) == 7, said
assert all(f"not saved: pid {winner} on " in text for text in told), said
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == ["ckpt-1.h5"]


def test_a_child_that_outlives_its_parent_holds_no_lock(tmp_path: Path) -> None:
    code = """
manager = fv.CheckpointManager(fv.Checkpoint(w=fv.Variable([1.0])), sys.argv[1])
manager.save(1)
if os.fork() == 0:
    sys.stdout.close()
    os.close(1), os.close(2)
    import time
    time.sleep(30)
print("done", flush=True)
os._exit(0)
"""
    assert run(code, tmp_path).stdout == "done\n"
    assert manager(tmp_path, fv.Variable([1.0])).save(2) is not None


def test_without_locks_a_manager_says_so_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    (tmp_path / ".fastvar-0123.tmp").write_text("somebody's?")
    one = manager(tmp_path, fv.Variable([1.0]))
    with pytest.warns(RuntimeWarning, match=r"\.lock: this file system has no locks"):
        one.save(1)
    one.save(2)
    assert files(tmp_path) == [".fastvar-0123.tmp", "ckpt-1.h5", "ckpt-2.h5"]


def test_debris_is_cleaned_and_nothing_else(tmp_path: Path) -> None:
    foreign = [".fastvar-x.tmp.txt", "fastvar-1.tmp", ".other-1.tmp"]
    for name in (".fastvar-dead.tmp", ".fastvar-living.tmp", *foreign):
        (tmp_path / name).write_text("x")
    (tmp_path / ".fastvar-link.tmp").symlink_to(tmp_path / "fastvar-1.tmp")
    (tmp_path / ".fastvar-directory.tmp").mkdir()
    with open(tmp_path / ".fastvar-living.tmp") as file:
        assert locks.try_lock(file.fileno())
        fv.Checkpoint(w=fv.Variable([1.0])).save(tmp_path / "a.h5")
        living = [".fastvar-directory.tmp", ".fastvar-link.tmp", ".fastvar-living.tmp"]
        assert files(tmp_path) == sorted([*living, *foreign, "a.h5"])
    publishing.clean(str(tmp_path))
    assert files(tmp_path) == sorted([*living[:2], *foreign, "a.h5"])


def test_a_temporary_file_taken_for_debris_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def lock(descriptor: int) -> bool:
        asked.append(descriptor)
        if len(asked) == 1:  # another process cleans up: it has the lock
            return False
        if len(asked) == 2:  # or had it, and has removed the file
            for path in tmp_path.glob(".fastvar-*.tmp"):
                path.unlink()
        return bool(locks.try_lock(descriptor))

    monkeypatch.setattr(publishing, "try_lock", lock)
    with publishing.temporary(str(tmp_path)) as (path, descriptor):
        os.close(descriptor)
        assert os.path.exists(path)
        assert len(asked) == 3
