"""The folder of a manager: where it is, and what else may lie in it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from managing import files, manager

import fastvar as fv


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Start in the folder `here`; the function goes to the folder `there`."""
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
    first = saver.save("model", 1)
    fv.checkpoint.convert(path, "a.npz")
    elsewhere()
    w[...] = 0
    assert fv.Checkpoint(variables=[w]).restore(path).step == 0
    assert w.value.tolist() == [1, 2]
    assert saver.last_checkpoints == [first]
    saver.save("model", 2)
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
