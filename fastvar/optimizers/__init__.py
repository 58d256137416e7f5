"""Optimizers with Keras's names, defaults and meaning, and further ones that Keras lacks (layer 7)."""

from fastvar.optimizers.adagrad import Adadelta, Adagrad, RMSprop
from fastvar.optimizers.adam import Adam, AdamW
from fastvar.optimizers.adam_successors import Adan, AdEMAMix, Adopt, ScheduleFreeAdamW
from fastvar.optimizers.adam_variants import AdaBelief, Adamax, Nadam, RAdam, Yogi
from fastvar.optimizers.ftrl import Ftrl
from fastvar.optimizers.sgd import ASGD, SGD
from fastvar.optimizers.sign import Lion, Rprop, Signum

__all__ = [
    "ASGD",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Adopt",
    "Ftrl",
    "Lion",
    "Nadam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "Signum",
    "Yogi",
]
