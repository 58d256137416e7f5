"""Checkpoints: verified HDF5 files of variables, optimizers and state (the only user of h5py)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fastvar.buffers import Array
from fastvar.checkpoint.checkpoint import Checkpoint
from fastvar.checkpoint.conversion import convert
from fastvar.checkpoint.differences import diff
from fastvar.checkpoint.file_format import CheckpointError
from fastvar.checkpoint.foreign import load_foreign
from fastvar.checkpoint.inspection import inspect, inspect_folder, verify
from fastvar.checkpoint.manager import CheckpointManager
from fastvar.checkpoint.report import Like, Restored
from fastvar.checkpoint.saver import Saver, latest_checkpoint, written
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.names import public as _public

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointManager",
    "Restored",
    "Saver",
    "convert",
    "diff",
    "inspect",
    "inspect_folder",
    "latest_checkpoint",
    "list_variables",
    "load_foreign",
    "load_variable",
    "verify",
]


def list_variables(path: str | os.PathLike[str]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes of all tensors in a checkpoint: variables, slots, arrays of the state.

    The path may be one given to `Saver.save`, which adds `.h5`.

    Raises
    ------
    CheckpointError
        If the file is damaged or not a checkpoint.
    """
    with CheckpointFile(written(path)) as file:
        return [(name, entry.shape) for name, entry in file.entries.items()]


def load_variable(path: str | os.PathLike[str], name: str) -> Array:
    """Return one tensor of a checkpoint, verified: by the name that `list_variables` gives, or a variable's.

    The path may be one given to `Saver.save`, which adds `.h5`.

    Raises
    ------
    CheckpointError
        If there is none of that name, or it is damaged.
    """
    with CheckpointFile(written(path)) as file:
        stored = f"variables/{name}" if f"variables/{name}" in file.entries else name
        if stored not in file.entries:
            hint = Like(file.entries).hint(stored) or "; list_variables gives the names"
            raise CheckpointError(f"{file.path}: there is no tensor {name!r} in this checkpoint{hint}")
        return file.read(stored)


if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name
    __getattr__, __dir__ = _public("fastvar.checkpoint", __all__)
