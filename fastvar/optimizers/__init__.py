"""Optimizers with Keras's names, defaults and meaning, and further ones that Keras lacks.

Slots that decay, such as "momentum", are flushed: an element is stored as 0 where its magnitude is below 16384
times the smallest normal number of its dtype. Denormal numbers would slow every later step.
"""

from typing import TYPE_CHECKING

from fastvar.names import public as _public
from fastvar.optimizers.adam_successors import Adan, AdEMAMix, Adopt, ScheduleFreeAdamW
from fastvar.optimizers.adam_variants import AdaBelief, Adamax, Nadam, RAdam, Yogi
from fastvar.optimizers.descent import ASGD, SGD
from fastvar.optimizers.follow_the_leader import Ftrl
from fastvar.optimizers.layerwise import Lamb, Lars, Prodigy
from fastvar.optimizers.loss_scale import LossScaleOptimizer
from fastvar.optimizers.matrix import Adafactor, Muon
from fastvar.optimizers.moments import Adam, AdamW
from fastvar.optimizers.quasi_newton import LBFGS
from fastvar.optimizers.sign import Lion, Rprop, Signum
from fastvar.optimizers.squares import Adadelta, Adagrad, RMSprop

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Adopt",
    "Ftrl",
    "Lamb",
    "Lars",
    "Lion",
    "LossScaleOptimizer",
    "Muon",
    "Nadam",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "Signum",
    "Yogi",
]

if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name
    __getattr__, __dir__ = _public("fastvar.optimizers", __all__)
