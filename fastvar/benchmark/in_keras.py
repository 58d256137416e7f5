"""The same rules in Keras, on the backend that KERAS_BACKEND names, or one that is installed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import numpy as np

from fastvar.benchmark.cases import Case
from fastvar.benchmark.contest import Contender, Prepared, arrays

_RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "adam": ("Adam", {"epsilon": 1e-8}),
    "amsgrad": ("Adam", {"epsilon": 1e-8, "amsgrad": True}),
    "lion": ("Lion", {}),
    "adamax": ("Adamax", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-momentum": ("RMSprop", {"momentum": 0.9}),
    "rmsprop-centered": ("RMSprop", {"centered": True}),
    "ftrl": ("Ftrl", {}),
    "adamw+clip+ema": (
        "AdamW",
        {"epsilon": 1e-8, "weight_decay": 0.004, "global_clipnorm": 1.0, "use_ema": True},
    ),
}


def choose_backend() -> None:
    """Let Keras use a backend that is installed, unless the environment names one."""
    installed = (name for name in ("torch", "tensorflow", "jax") if find_spec(name))
    os.environ.setdefault("KERAS_BACKEND", next(installed, "numpy"))


def _prepare(case: Case) -> Prepared:
    choose_backend()
    import keras

    name, options = _RULES[case.algorithm.name]
    weights, gradients = arrays(case)
    variables = [keras.Variable(w, dtype=case.dtype) for w in weights]
    given = [keras.ops.convert_to_tensor(g) for g in gradients]
    optimizer = getattr(keras.optimizers, name)(learning_rate=0.001, **options)
    optimizer.build(variables)
    lasts = [variable.value for variable in variables[-1:]]

    def step() -> None:
        optimizer.apply(given, variables)
        if hasattr(lasts[0], "block_until_ready"):  # JAX computes later
            variables[-1].value.block_until_ready()

    return Prepared(step, lambda: [np.asarray(keras.ops.convert_to_numpy(v.value)) for v in variables])


CONTENDER = Contender(
    "Keras", "keras", lambda case: case.algorithm.name in _RULES and case.dtype == "float32", _prepare
)
