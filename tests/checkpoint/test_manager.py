"""CheckpointManager: the latest and the best checkpoint, saves in the background, retention."""

from __future__ import annotations

import errno
import gc
import math
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint.background import Background, Staging
from fastvar.checkpoint.reader import File
from tests.support.managers import files, manager, run


def test_the_manager_keeps_the_newest_and_finds_the_latest_by_record(tmp_path: Path) -> None:
    w = fv.Variable([0.0])
    one = manager(tmp_path, w, max_to_keep=2)
    (tmp_path / "notes.txt").write_text("mine")
    for step in range(5):
        w[...] = step
        one.save(step)
    assert [Path(p).name for p in one.checkpoints] == ["ckpt-4.h5", "ckpt-5.h5"]
    (tmp_path / "ckpt-5.h5").rename(tmp_path / "ckpt-0.h5")  # the name alone proves nothing
    one.close()
    again = manager(tmp_path, w, max_to_keep=2)
    w[...] = -1
    assert Path(str(again.restore_or_initialize())).name == "ckpt-0.h5"
    assert w[0] == 4
    assert Path(str(again.save(9))).name == "ckpt-6.h5"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_manager_keeps_some_for_ever(tmp_path: Path, monkeypatch: Any) -> None:
    import os
    import time

    w = fv.Variable([0.0])
    one = manager(tmp_path, w, max_to_keep=2, keep_checkpoint_every_n_hours=2)
    for hour in range(8):
        now = 1e9 + 3600 * hour
        monkeypatch.setattr(time, "time", lambda now=now: now)
        path = one.save(hour)
        os.utime(str(path), (now, now))
    assert [Path(p).name for p in one.checkpoints] == [f"ckpt-{k}.h5" for k in (1, 3, 5, 7, 8)]


@pytest.mark.parametrize(
    "thing", [[fv.Variable(0.0)], "folder", fv.optimizers.SGD()], ids=["list", "str", "optimizer"]
)
def test_only_a_checkpoint_is_managed(tmp_path: Path, thing: Any) -> None:
    with pytest.raises(TypeError, match=f"must be a fastvar.Checkpoint, got {type(thing).__name__}"):
        fv.CheckpointManager(thing, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_manager_saves_by_interval(tmp_path: Path) -> None:
    step = fv.Variable(0, trainable=False)
    one = manager(tmp_path, fv.Variable([0.0]), step_counter=step, checkpoint_interval=10)
    saved = []
    for _ in range(25):
        saved.append(one.save() is not None)
        step.assign_add(1)
    assert [k for k, done in enumerate(saved) if done] == [0, 10, 20]
    assert one.save(check_interval=False) is not None


def test_the_manager_initializes_only_where_nothing_is(tmp_path: Path) -> None:
    called = []
    one = manager(tmp_path, fv.Variable([0.0]), init_fn=lambda: called.append(1))
    assert one.restore_or_initialize() is None
    assert called == [1]
    path = Path(str(one.save()))
    assert one.restore_or_initialize() == str(path)
    assert called == [1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(fv.CheckpointError, match="no checkpoint is whole"):
        one.restore_or_initialize()
    assert called == [1]


def test_the_manager_passes_over_a_damaged_one_loudly(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    one = manager(tmp_path, w)
    good = one.save()
    w[...] = 2
    bad = Path(str(one.save()))
    data = bytearray(bad.read_bytes())
    data[-4] ^= 16
    bad.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"ckpt-2\.h5.*restored .*ckpt-1\.h5 instead"):
        assert one.restore_or_initialize() == good
    assert w[0] == 1


def test_training_continues_after_falling_back(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    one = manager(tmp_path, w)
    one.save()
    bad = Path(str(one.save()))
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.warns(RuntimeWarning, match=r"ckpt-2\.h5"):
        one.restore_or_initialize()
    assert Path(str(one.save())).name == "ckpt-3.h5"


def test_retention_touches_only_its_own_files(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    checkpoint = fv.Checkpoint(w=w)
    checkpoint.save(tmp_path / "ckpt-mine.h5")
    best = manager(tmp_path, w, max_to_keep=1, checkpoint_name="ckpt-best")
    newest = manager(tmp_path, w, max_to_keep=1)
    for _ in range(3):
        best.save()
        newest.save()
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["ckpt-3.h5", "ckpt-best-3.h5", "ckpt-mine.h5"]


def test_an_interval_needs_steps_and_starts_with_the_manager(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    with pytest.raises(ValueError, match="step_counter"):
        manager(tmp_path, w, checkpoint_interval=5)
    manager(tmp_path, w).save(50)
    fresh = manager(tmp_path, w, step_counter=lambda: 0, checkpoint_interval=10)
    assert fresh.save() is not None


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Block every fsync until the event is set, so that a test decides how long a background save takes."""
    event, sync = threading.Event(), os.fsync

    def held(descriptor: int) -> None:
        assert event.wait(60)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", held)
    return event


def test_a_save_in_the_background_holds_what_was_there(tmp_path: Path, gate: threading.Event) -> None:
    w, data = fv.Variable(np.arange(100_000.0), name="w"), {"seen": [1], "array": np.ones(3)}
    with fv.CheckpointManager(fv.Checkpoint(w=w, data=data), tmp_path) as one:
        path = one.save(1, blocking=False)
        assert one.checkpoints == []
        w[...] = 0
        data["seen"].append(2)
        data["array"][...] = 0
        gate.set()
        one.wait()
        assert one.checkpoints == [path]
        one.save(2, blocking=False)  # into the same buffer
    one.checkpoint.restore(str(path))
    assert np.array_equal(w, np.arange(100_000.0))
    assert data["seen"] == [1]
    assert data["array"].tolist() == [1, 1, 1]
    one.checkpoint.restore(one.checkpoints[1])
    assert not w.value.any()


def test_staging_uses_its_room_again_and_makes_other_room_for_other_arrays() -> None:
    staging, x = Staging(), np.arange(1 << 18, dtype=np.float32)
    arrays = {
        "x": x,
        "flags": np.array([True, False]),
        "none": np.zeros((0, 3)),
        "one": np.full((), 7),
    }
    first = staging.copy(arrays)
    places = {name: a.ctypes.data for name, a in first.items()}
    x += 1
    second = staging.copy(arrays)
    assert {name: a.ctypes.data for name, a in second.items()} == places
    assert all(np.array_equal(second[name], a) and second[name].dtype == a.dtype for name, a in arrays.items())
    assert staging.copy({"x": x[:100]})["x"].shape == (100,)


def test_an_error_in_the_background_is_raised_once_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = manager(tmp_path, fv.Variable([1.0]), checkpoint_interval=10, step_counter=lambda: 0)
    first = one.save(0)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    calls = [one.wait, one.close, one.save, lambda: one.save(25), one.restore_or_initialize]
    for call in calls:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            one.save(20, check_interval=False, blocking=False)
            while one._background.busy:
                time.sleep(0.001)
        with pytest.raises(fv.CheckpointError, match=r"ckpt-2\.h5: not saved: No space left"):
            call()
        one.wait()  # once
        assert one.checkpoints == [first]
        assert files(tmp_path) == ["ckpt-1.h5"]
    assert one.save(21) is not None  # due at once, as that of step 20 failed
    assert len(one.checkpoints) == 2


def test_the_program_ends_after_the_save_and_shows_its_error(tmp_path: Path) -> None:
    code = """
w = fv.Variable([1.0] * 100_000)
manager = fv.CheckpointManager(fv.Checkpoint(w=w), sys.argv[1])
def fail(descriptor):
    raise OSError(28, "disk full")
if sys.argv[2] == "bad":
    os.fsync = fail
manager.save(1, blocking=False)
"""
    good = run(code, tmp_path / "a", "good")
    assert (good.returncode, good.stderr) == (0, "")
    assert files(tmp_path / "a") == ["ckpt-1.h5"]
    bad = run(code, tmp_path / "b", "bad")
    assert "ckpt-1.h5: not saved: disk full" in bad.stderr
    assert files(tmp_path / "b") == []


def test_a_save_while_the_program_ends(tmp_path: Path) -> None:
    code = """
import atexit
w = fv.Variable([1.0] * 100_000)
checkpoint = fv.Checkpoint(w=w)
def last():
    checkpoint.restore(checkpoint.save(sys.argv[1]))
    print("saved")
atexit.register(last)
"""
    done = run(code, tmp_path / "a.h5")
    assert (done.stdout, done.stderr) == ("saved\n", "")


def test_the_error_of_a_forgotten_task_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def task() -> None:
        raise OSError("lost?")

    background = Background()
    background.start(task)
    while background.busy:
        time.sleep(0.001)
    del background
    gc.collect()
    assert "OSError: lost?" in capsys.readouterr().err


def test_the_best_is_remembered_across_resumes(tmp_path: Path) -> None:
    w = fv.Variable([0.0])
    losses = [3.0, 1.0, 2.0, math.nan, 1.0, 5.0]
    for step, loss in enumerate(losses):
        one = manager(tmp_path, w, max_to_keep=2, monitor="loss", mode="min")
        one.restore_or_initialize()
        w[...] = step
        one.save(step, metrics={"loss": np.float32(loss), "accuracy": 1})
        one.close()
    assert files(tmp_path) == ["ckpt-2.h5", "ckpt-5.h5", "ckpt-6.h5"]
    assert Path(str(one.best_checkpoint)).name == "ckpt-2.h5"  # the first of equals
    most = manager(tmp_path, w, max_to_keep=1, monitor="loss", mode="max", keep_best=2)
    assert Path(str(most.best_checkpoint)).name == "ckpt-6.h5"
    with pytest.raises(ValueError, match="monitor='loss' is not among the metrics"):
        most.save(9, metrics={"los": 1.0})
    with pytest.raises(TypeError, match="metric 'loss' must be a number, got 'low'"):
        most.save(9, metrics={"loss": "low"})
    most.save(9)
    assert files(tmp_path) == ["ckpt-2.h5", "ckpt-6.h5", "ckpt-7.h5"]
    assert manager(tmp_path, w).best_checkpoint is None


def test_pinned_ones_stay(tmp_path: Path) -> None:
    one = manager(tmp_path, fv.Variable([0.0]), max_to_keep=1)
    first = str(one.save(1))
    one.pin(first)
    with pytest.raises(FileNotFoundError):
        one.pin("ckpt-9.h5")
    for step in (2, 3):
        one.save(step)
    assert files(tmp_path) == ["ckpt-1.h5", "ckpt-1.h5.pin", "ckpt-3.h5"]
    one.unpin("ckpt-1.h5")
    one.unpin("ckpt-1.h5")
    one.save(4)
    assert files(tmp_path) == ["ckpt-4.h5"]


def test_nothing_is_removed_unless_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = fv.Variable(np.ones(100))
    one = manager(tmp_path, w, max_to_keep=1)
    one.save(1)
    sync = os.fsync
    with File(tmp_path / "ckpt-1.h5") as first:
        offset = first.entries["variables/w"].offset

    def damage(descriptor: int) -> None:  # like a bad disk
        for path in tmp_path.glob(".fastvar-*.tmp"):
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(b"oops")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", damage)
        with pytest.raises(fv.CheckpointError, match=r"ckpt-2\.h5: damaged tensors: 'variables/w'"):
            one.save(2)
    assert files(tmp_path) == ["ckpt-1.h5", "ckpt-2.h5"]
    with pytest.warns(RuntimeWarning, match=r"ckpt-2\.h5: damaged"):
        one.restore_or_initialize()


def test_a_file_that_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = manager(tmp_path, fv.Variable([0.0]), max_to_keep=1)
    one.save(1)
    unlink = os.unlink

    def refuse(path: Any) -> None:
        if str(path).endswith("ckpt-1.h5"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.warns(RuntimeWarning, match=r"ckpt-1\.h5: not removed: Operation not permitted"):
        one.save(2)
    assert files(tmp_path) == ["ckpt-1.h5", "ckpt-2.h5"]


def test_a_fresh_start_beside_checkpoints_of_another_name_is_loud(tmp_path: Path) -> None:
    w = fv.Variable([0.0])
    manager(tmp_path, w, checkpoint_name="model").save(1)
    (tmp_path / "data.h5").write_text("not one of ours")
    with pytest.warns(RuntimeWarning, match=r"holds no ckpt-\*\.h5, but model-1\.h5; starting afresh"):
        assert manager(tmp_path, w).restore_or_initialize() is None
    (tmp_path / "model-1.h5").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert manager(tmp_path, w).restore_or_initialize() is None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_to_keep", 0),
        ("max_to_keep", 1.5),
        ("keep_checkpoint_every_n_hours", 0),
        ("keep_checkpoint_every_n_hours", math.nan),
        ("keep_checkpoint_every_n_steps", 0),
        ("keep_best", 0),
        ("mode", "lowest"),
        ("checkpoint_interval", 0),
        ("checkpoint_name", "a/b"),
    ],
)
def test_bad_options_are_named(option: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"CheckpointManager: {option} must be"):
        manager(tmp_path, fv.Variable([0.0]), **{option: value})


def test_what_is_removed_while_one_looks_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is not empty if all its checkpoints were replaced after they were listed."""
    w = fv.Variable(1.0)
    with manager(tmp_path, w) as saving:
        saving.save(1)
    here, there = fv.Variable(0.0), manager(tmp_path, w)
    listdir, listings = os.listdir, [["ckpt-0.h5"], ["ckpt-0.h5"]]
    monkeypatch.setattr(os, "listdir", lambda path: listings.pop() if listings else listdir(path))
    assert there.latest_checkpoint is not None
    assert not listings
    listings += [["ckpt-0.h5"]]
    assert manager(tmp_path, here).restore_or_initialize() is not None
    assert here == 1.0
