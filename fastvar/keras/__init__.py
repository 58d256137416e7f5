"""Keras's optimizers, with steps in fastvar's kernels; see docs/keras.md."""

from fastvar.keras import optimizers

__all__ = ["optimizers"]
