"""Optimizers with Keras's names, defaults and meaning (layer 7)."""

from fastvar.optimizers.adam import Adam, AdamW
from fastvar.optimizers.lbfgs import LBFGS
from fastvar.optimizers.loss_scale import LossScaleOptimizer
from fastvar.optimizers.sgd import SGD

__all__ = ["LBFGS", "SGD", "Adam", "AdamW", "LossScaleOptimizer"]
