"""Checkpoint files of a small training, for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fastvar as fv
from fastvar.checkpoint import reader


def train(folder: Path, steps: int = 3) -> list[str]:
    w = fv.Variable(np.float32([3, 4]), name="body/w")
    b = fv.Variable(np.zeros(3), name="body/b", trainable=False)
    optimizer = fv.optimizers.SGD(0.5, momentum=0.9)
    manager = fv.CheckpointManager(fv.Checkpoint(variables=[w, b], optimizer=optimizer), folder)
    paths = []
    for _ in range(steps):
        optimizer.apply([np.float32([1, 0])], [w])
        paths.append(str(manager.save()))
    return paths


def damage(path: str | Path) -> None:
    """Flip a bit of the last tensor."""
    with reader.File(path) as file:
        at = max(entry.offset or 0 for entry in file.entries.values())
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)
