"""Optimizers with PyTorch's names, defaults and meaning, on fastvar's variables and kernels.

The formulas and the names and order of arguments are those of `torch.optim` 2.13; PyTorch itself is not needed.
The docstring of each class says where it differs from `fastvar.optimizers`, which have Keras's meaning.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastvar import optimizers
from fastvar.names import unknown as _unknown
from fastvar.torch.adam_variants import Adamax, NAdam, RAdam
from fastvar.torch.base import ParamGroup, TorchOptimizer
from fastvar.torch.descent import ASGD, SGD, Rprop
from fastvar.torch.matrix import Adafactor, Muon
from fastvar.torch.moments import Adam, AdamW
from fastvar.torch.squares import Adadelta, Adagrad, RMSprop

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "ParamGroup",
    "RAdam",
    "RMSprop",
    "Rprop",
    "TorchOptimizer",
]

if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name

    def __getattr__(name: str) -> Any:
        """Import `optim`, which needs PyTorch, on first use."""
        if name == "optim":
            return importlib.import_module("fastvar.torch.optim")
        raise _unknown("fastvar.torch", name, {"fv.torch.": __all__, "fv.optimizers.": optimizers.__all__})


def __dir__() -> list[str]:
    return __all__
