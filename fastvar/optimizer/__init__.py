"""Optimizers: what they say of their rule, what they keep, and how a step runs."""

from fastvar.optimizer.base import Optimizer

__all__ = ["Optimizer"]
