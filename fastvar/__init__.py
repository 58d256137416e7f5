"""fastvar: trainable variables, fused compiled optimizers and HDF5 checkpoints for NumPy programs."""

from fastvar import constraints, optimizers, regularizers, schedules
from fastvar.module import Module
from fastvar.optimizer import Optimizer
from fastvar.threads import get_num_threads, set_num_threads
from fastvar.variable import Variable

__version__ = "0.1.0"

__all__ = [
    "Module",
    "Optimizer",
    "Variable",
    "constraints",
    "get_num_threads",
    "optimizers",
    "regularizers",
    "schedules",
    "set_num_threads",
]
