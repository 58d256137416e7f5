"""Optimizers with PyTorch's names, defaults and meaning, on fastvar's variables and kernels.

The formulas, and the order and names of arguments, are those of `torch.optim` 2.13; PyTorch itself is not needed.
Where they differ from `fastvar.optimizers`, which has Keras's meaning, every class says so.
"""

from fastvar.torch.adagrad import Adadelta, Adagrad, RMSprop
from fastvar.torch.adam import Adam, AdamW
from fastvar.torch.adam_variants import Adamax, NAdam, RAdam
from fastvar.torch.base import ParamGroup, TorchOptimizer
from fastvar.torch.sgd import ASGD, SGD, Rprop

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "ParamGroup",
    "RAdam",
    "RMSprop",
    "Rprop",
    "TorchOptimizer",
]
