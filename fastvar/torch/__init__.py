"""Optimizers with PyTorch's names, defaults and meaning, on fastvar's variables and kernels.

The formulas and the names and order of arguments are those of `torch.optim` 2.13; PyTorch itself is not needed.
The docstring of each class says where it differs from `fastvar.optimizers`, which have Keras's meaning.
"""

from fastvar.torch.adagrad import Adadelta, Adagrad, RMSprop
from fastvar.torch.adam import Adam, AdamW
from fastvar.torch.adam_variants import Adamax, NAdam, RAdam
from fastvar.torch.base import ParamGroup, TorchOptimizer
from fastvar.torch.matrix import Adafactor, Muon
from fastvar.torch.sgd import ASGD, SGD, Rprop

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
