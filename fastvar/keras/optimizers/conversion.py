"""Optimizers of Keras as those of fastvar.keras, and back, with their state."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from fastvar.keras.optimizers import classes
from fastvar.keras.optimizers.slot_formats import assign, decoded, shared
from fastvar.keras.optimizers.stepping import KEYWORDS

OURS = {cls.keras_class(): cls for cls in (getattr(classes, name) for name in classes.__all__)}


def from_keras(optimizer: Any, **keywords: Any) -> Any:
    """Return an optimizer of fastvar.keras with the hyperparameters and a copy of the state of one of Keras.

    Of a `LossScaleOptimizer`, the inner optimizer is another.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        An optimizer of Keras, built or not.
    **keywords
        `slot_dtype`, `slot_dtype_min_size`, `master` and `seed` of the new one. Slots are rounded to nearest,
        once. Masters begin at the weights.

    Raises
    ------
    TypeError
        If fastvar has no such class.
    """
    if type(optimizer) is keras.optimizers.LossScaleOptimizer:
        return _rescaled(optimizer, from_keras(optimizer.inner_optimizer, **keywords))
    of_keras = next((each for each in type(optimizer).__mro__ if each in OURS), None)
    if of_keras is None or not type(optimizer).__module__.startswith("keras."):
        raise TypeError(f"from_keras: must be given an optimizer of Keras that fastvar has, got {optimizer!r}")
    return _copied(optimizer, OURS[of_keras], keywords)


def to_keras(optimizer: Any) -> Any:
    """Return Keras's own optimizer with the hyperparameters and a copy of the state of one of fastvar.keras.

    Slots in 16 and 8 bits are decoded, and stay in the dtype of their variables from then on. Masters of weights
    in 16 bits are dropped.
    Of a `LossScaleOptimizer`, the inner optimizer is another.

    Raises
    ------
    TypeError
        If it is not an optimizer of fastvar.keras.
    """
    if type(optimizer) is keras.optimizers.LossScaleOptimizer:
        return _rescaled(optimizer, to_keras(optimizer.inner_optimizer))
    if type(optimizer) not in OURS.values():
        raise TypeError(f"to_keras: must be given an optimizer of fastvar.keras, got {optimizer!r}")
    return _copied(optimizer, optimizer.keras_class(), {})


def _copied(optimizer: Any, cls: Any, keywords: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of a function as the rate, which is handed over as it is
        config = optimizer.get_config()
    if not isinstance(optimizer._learning_rate, keras.Variable):
        config["learning_rate"] = optimizer._learning_rate
    made = cls(**{name: value for name, value in config.items() if name not in KEYWORDS.parameters}, **keywords)
    for name, value in vars(optimizer).items():
        if name.startswith("_exclude_from_weight_decay"):
            setattr(made, name, value)
    return _with_state(made, optimizer)


def _rescaled(optimizer: Any, inner: Any) -> Any:
    made = keras.optimizers.LossScaleOptimizer(
        inner, optimizer.initial_scale, optimizer.dynamic_growth_steps, name=optimizer.name
    )
    return _with_state(made, optimizer)


def _with_state(made: Any, optimizer: Any) -> Any:
    """Give an optimizer the state of another one on the same variables."""
    if optimizer.built:
        if not made.built:
            made.build(optimizer._trainable_variables)
        pairs = zip(shared(made.variables), shared(optimizer.variables), strict=True)
        for new, old in pairs:
            assign(new, decoded(old))
    return made
