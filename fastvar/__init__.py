"""fastvar: trainable variables, fused compiled optimizers and HDF5 checkpoints for NumPy programs."""

import importlib
from typing import TYPE_CHECKING, Any

from fastvar import constraints, initializers, optimizers, regularizers, schedules
from fastvar.gradient_check import check_gradients
from fastvar.module import Module, penalty
from fastvar.optimizer import Optimizer
from fastvar.slices import IndexedSlices
from fastvar.threads import get_num_threads, set_num_threads
from fastvar.variable import Variable

if TYPE_CHECKING:
    from fastvar import checkpoint, torch
    from fastvar import keras as keras
    from fastvar import scipy as scipy
    from fastvar import sklearn as sklearn
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
    "check_gradients",
    "checkpoint",
    "constraints",
    "get_num_threads",
    "initializers",
    "list_variables",
    "load_variable",
    "optimizers",
    "penalty",
    "regularizers",
    "schedules",
    "set_num_threads",
    "torch",
]


_LATER = ("checkpoint", "torch", "keras", "scipy", "sklearn")  # they take time to import, or need a library


if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name

    def __getattr__(name: str) -> Any:
        """Import the modules of _LATER, and what is in checkpoint, on first use."""
        if name in _LATER:
            return importlib.import_module(f"fastvar.{name}")
        if name in __all__:
            return getattr(importlib.import_module("fastvar.checkpoint"), name)
        modules = (optimizers, schedules, regularizers, initializers, constraints)
        found = {module.__name__: getattr(module, name, None) for module in modules}
        places = [at for at, thing in found.items() if getattr(thing, "__module__", "").startswith(at)]
        hint = f"; did you mean {places[0].replace('fastvar', 'fv')}.{name}?" if places else ""
        raise AttributeError(f"module 'fastvar' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """Return the public names; keras, scipy and sklearn once imported, as completion evaluates every name."""
    return sorted({*__all__, "__version__", *(name for name in _LATER if name in globals())})
