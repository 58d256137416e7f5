"""Optimizers with Keras's names, defaults and meaning (layer 7)."""

from fastvar.optimizers.adam import Adam, AdamW
from fastvar.optimizers.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW"]
