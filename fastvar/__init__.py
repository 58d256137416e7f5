"""fastvar: trainable variables, fused compiled optimizers and HDF5 checkpoints for NumPy programs."""

import importlib
from typing import TYPE_CHECKING, Any

from fastvar import constraints, initializers, optimizers, regularizers, schedules
from fastvar.gradient_check import check_gradients
from fastvar.module import Module, penalty
from fastvar.names import unknown as _unknown
from fastvar.optimizer import Optimizer
from fastvar.slices import IndexedSlices
from fastvar.threads import get_num_threads, set_num_threads
from fastvar.variable import Variable

if TYPE_CHECKING:
    from fastvar import checkpoint, torch
    from fastvar import distributed as distributed
    from fastvar import keras as keras
    from fastvar import scipy as scipy
    from fastvar import sklearn as sklearn
    from fastvar.checkpoint import (
        Checkpoint,
        CheckpointError,
        CheckpointManager,
        Saver,
        latest_checkpoint,
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
    "latest_checkpoint",
    "list_variables",
    "load_variable",
    "optimizers",
    "penalty",
    "regularizers",
    "schedules",
    "set_num_threads",
    "torch",
]


_LATER = (
    "checkpoint",
    "torch",
    "distributed",
    "keras",
    "scipy",
    "sklearn",
)  # they take time to import, or need a library

_DIFFERENTIATE = 'use optimizer.minimize(loss, variables, gradients="autograd"), or "jax" or "torch"'
_AT_ONCE = "there are no graphs: everything is computed at once, on NumPy arrays"
_TRAINABLE = "use net.trainable_variables of a fv.Module, or a list of your own"
_IN_FILES = "use fv.Checkpoint, fv.CheckpointManager or fv.Saver"
_ELSEWHERE = {  # names of TensorFlow and PyTorch, and what to use
    "train": "use fv.optimizers, as fv.optimizers.Adam, fv.schedules, fv.Checkpoint or fv.Saver",
    "optim": "use fv.torch, as fv.torch.Adam, or fv.torch.optim for PyTorch's tensors",
    "get_variable": "use fv.Variable(value, name=...)",
    "Parameter": "use fv.Variable",
    **dict.fromkeys(("GradientTape", "grad", "value_and_grad"), _DIFFERENTIATE),
    **dict.fromkeys(("Session", "placeholder", "global_variables_initializer", "function"), _AT_ONCE),
    **dict.fromkeys(("trainable_variables", "global_variables", "get_collection"), _TRAINABLE),
    **dict.fromkeys(("constant", "Tensor", "tensor", "array"), "use a NumPy array"),
    **dict.fromkeys(("nn", "layers"), "there are no layers: write them as classes from fv.Module"),
    **dict.fromkeys(("save", "load", "restore"), _IN_FILES),
    **dict.fromkeys(("assign", "assign_add", "assign_sub"), "use the method of fv.Variable"),
    **dict.fromkeys(("clip_by_global_norm", "clip_grad_norm_"), "pass global_clipnorm to an optimizer"),
    "clip_by_norm": "pass clipnorm to an optimizer",
    **dict.fromkeys(("clip_by_value", "clip_grad_value_"), "pass clipvalue to an optimizer"),
    **dict.fromkeys(
        ("apply_updates", "apply_gradients"), "use the methods apply and apply_gradients of an optimizer"
    ),
    "checkpoint_exists": "use fv.latest_checkpoint(folder)",
    "minimize": "use the method minimize of an optimizer; docs/scipy.md has methods for SciPy's minimize",
}

if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name

    def __getattr__(name: str) -> Any:
        """Import the modules of _LATER, and what is in checkpoint, on first use."""
        if name in _LATER:
            return importlib.import_module(f"fastvar.{name}")
        if name in __all__:
            return getattr(importlib.import_module("fastvar.checkpoint"), name)
        if name in _ELSEWHERE:
            raise AttributeError(f"module 'fastvar' has no attribute {name!r}; {_ELSEWHERE[name]}")
        modules = (optimizers, schedules, regularizers, initializers, constraints)
        places = {f"{module.__name__.replace('fastvar', 'fv')}.": module.__all__ for module in modules}
        raise _unknown("fastvar", name, {"fv.": __all__, **places})


def __dir__() -> list[str]:
    """Return the public names; keras, scipy and others once imported, as completion evaluates every name."""
    return sorted({*__all__, "__version__", *(name for name in _LATER if name in globals())})
