"""Checkpoint files whose state has been changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvar.checkpoint.reader import File
from fastvar.checkpoint.writer import write


def edited(path: Path, change: Any, step: int = 0) -> Path:
    """Copy a file with a changed state. The copy is whole, and its hashes are right."""
    with File(path) as file:
        tensors, state = {name: file.read(name) for name in file.entries}, file.state
        step = file.step
    changed = change(state)
    other = path.with_name("edited.h5")
    write(other, tensors, state if changed is None else changed, step=step, replace=True)
    return other
