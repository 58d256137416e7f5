"""Keras's optimizers, with steps in fastvar's kernels; see docs/keras.md."""

try:
    from fastvar.keras import optimizers
except ModuleNotFoundError as error:
    raise ImportError(
        f"fastvar.keras: no module {error.name!r}; run `pip install keras`, and set the environment "
        "variable KERAS_BACKEND to torch or numpy (Keras's own default is tensorflow)"
    ) from error

__all__ = ["optimizers"]
