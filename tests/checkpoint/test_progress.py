"""Progress bars appear only where someone can see them."""

from __future__ import annotations

import io
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tqdm

import fastvar as fv
from fastvar.checkpoint import progress, reader, writer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def bars(monkeypatch: Any) -> list[Any]:
    """Record the bars that are made, as on a terminal."""
    made: list[Any] = []

    class Bar(tqdm.tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.counts: list[int] = []
            made.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            self.counts.append(int(n or 0))
            return super().update(n)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setattr(
        progress, "sys", types.SimpleNamespace(stderr=Terminal())
    )  # pytest changes sys.stderr itself
    monkeypatch.setattr(progress, "LEAST", 1 << 20)
    return made


@pytest.fixture
def path(tmp_path: Path) -> str:
    tensors = {"variables/big": np.ones(1 << 20, np.float32), "variables/small": np.ones(5)}
    writer.write(tmp_path / "a.h5", tensors, {}, step=0)
    return str(tmp_path / "a.h5")


def test_long_work_shows_the_bytes_of_large_tensors(path: str, bars: list[Any]) -> None:
    fv.checkpoint.verify(path)
    checkpoint = fv.Checkpoint(big=fv.Variable(np.zeros(1 << 20, np.float32)))
    checkpoint.restore(path, partial=True)
    checkpoint.save(path, overwrite=True)
    shown = ["verifying a.h5", "verifying a.h5", "restoring a.h5", "saving a.h5"]  # verified, then read
    assert [bar.desc for bar in bars] == shown
    for bar in bars:
        assert bar.total == sum(bar.counts) == 1 << 22
        assert bar.delay == 1
        assert bar.disable  # tqdm's closed ones
    assert progress.sys.stderr.getvalue() == ""  # type: ignore[attr-defined] # it took less than a second


def test_no_bar_where_none_is_seen_or_wanted(path: str, bars: list[Any], monkeypatch: Any) -> None:
    thread = threading.Thread(target=fv.checkpoint.verify, args=(path,))
    thread.start()
    thread.join()
    with progress.hidden():
        fv.checkpoint.verify(path)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "LEAST", 1 << 26)
        fv.checkpoint.verify(path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tqdm", None)
        fv.checkpoint.verify(path)
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(progress.sys, "stderr", stream)
        fv.checkpoint.verify(path)
    assert not bars


def test_a_bar_starts_no_thread_and_ends_with_an_error(path: str, bars: list[Any]) -> None:
    before = threading.active_count()
    with reader.File(path) as file:
        os.truncate(path, file.entries["variables/big"].offset + (1 << 21))
        with pytest.raises(fv.CheckpointError, match="ends too early"):
            file.verify()
    assert threading.active_count() == before
    assert bars[0].disable
    assert sum(bars[0].counts) <= 1 << 21


def test_long_work_is_seen(bars: list[Any], monkeypatch: Any) -> None:
    with progress.progress("saving x.h5", 1 << 21) as advance:
        bars[0].start_t -= 2
        advance(1 << 20)
        bars[0].refresh()
        assert "saving x.h5:  50%" in progress.sys.stderr.getvalue()  # type: ignore[attr-defined]
