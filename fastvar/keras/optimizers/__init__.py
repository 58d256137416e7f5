"""`keras.optimizers`, whose steps run in fastvar's kernels on the torch and NumPy backends; see docs/keras.md.

    import fastvar.keras.optimizers as optimizers  # in place of `from keras import optimizers`

Every class is a subclass of Keras's of the same name that overrides the step: arguments, messages, config,
variables and files are Keras's. With `slot_dtype`, slots are in 16 or 8 bits. With `master`, variables of
16 bits are updated in float32.
"""

from typing import NoReturn

import keras
from keras.optimizers import LossScaleOptimizer, Optimizer, deserialize, get, schedules, serialize

from fastvar.keras.optimizers import classes
from fastvar.keras.optimizers.classes import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Ftrl,
    Lamb,
    Lion,
    Muon,
    Nadam,
    RMSprop,
)
from fastvar.keras.optimizers.conversion import from_keras, to_keras
from fastvar.keras.optimizers.stepping import KernelStep
from fastvar.names import unknown

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "KernelStep",
    "Lamb",
    "Lion",
    "LossScaleOptimizer",
    "Muon",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "deserialize",
    "from_keras",
    "get",
    "schedules",
    "serialize",
    "to_keras",
]
if hasattr(classes, "ScheduleFreeAdamW"):
    from fastvar.keras.optimizers.classes import ScheduleFreeAdamW as ScheduleFreeAdamW

    __all__ += ["ScheduleFreeAdamW"]


def __getattr__(name: str) -> NoReturn:
    if hasattr(keras.optimizers, name):
        raise AttributeError(f"fastvar.keras.optimizers has no {name}; keras.optimizers.{name} is there")
    raise unknown("fastvar.keras.optimizers", name, {"fastvar.keras.optimizers.": __all__})
