"""fastvar: trainable variables, fused compiled optimizers and HDF5 checkpoints for NumPy programs."""

import importlib
from typing import TYPE_CHECKING, Any

from fastvar import constraints, optimizers, regularizers, schedules
from fastvar.module import Module
from fastvar.optimizer import Optimizer
from fastvar.slices import IndexedSlices
from fastvar.threads import get_num_threads, set_num_threads
from fastvar.variable import Variable

if TYPE_CHECKING:
    from fastvar import checkpoint, torch
    from fastvar.checkpoint import (
        Checkpoint,
        CheckpointError,
        CheckpointManager,
        Saver,
        list_variables,
        load_variable,
    )

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointManager",
    "IndexedSlices",
    "Module",
    "Optimizer",
    "Saver",
    "Variable",
    "checkpoint",
    "constraints",
    "get_num_threads",
    "list_variables",
    "load_variable",
    "optimizers",
    "regularizers",
    "schedules",
    "set_num_threads",
    "torch",
]


def __getattr__(name: str) -> Any:
    """Import checkpoint, keras and torch on first use: importing h5py and Keras takes time."""
    if name in ("checkpoint", "keras", "torch"):
        return importlib.import_module(f"fastvar.{name}")
    if name in __all__:
        return getattr(importlib.import_module("fastvar.checkpoint"), name)
    raise AttributeError(f"module 'fastvar' has no attribute {name!r}")
