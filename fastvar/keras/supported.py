"""Which releases and backends of Keras are supported."""

from typing import Any

import keras

from fastvar import versions

OLDEST = (3, 10)  # the first whose `apply` counts the steps, which `_backend_apply_gradients` did before
NEXT = (4, 0)  # the first that may mean something else
BACKENDS = ("torch", "numpy")
BETTER = {
    "jax": "use keras.optimizers, which JAX compiles together with the rest of the training step",
    "tensorflow": "use keras.optimizers, which TensorFlow compiles together with the rest of the training step",
}


def check(version: str, backend: str) -> None:
    """Raise ImportError, which says what to do, if a version or a backend of Keras is not supported."""
    versions.check("fastvar.keras", "keras", version, OLDEST, NEXT)
    if backend not in BACKENDS:
        raise ImportError(
            f"fastvar.keras: needs Keras's backend to be {' or '.join(BACKENDS)}, found {backend}; "
            f"{BETTER.get(backend, 'use keras.optimizers')}"
        )


class Unfit(Exception):
    """The reason why kernels cannot run a step, which Keras then runs."""


def refused(variable: Any, wanted: str, got: object) -> Unfit:
    """Return the reason that a variable is not as kernels need it."""
    return Unfit(f"{variable.path} must be {wanted}, got {got}")


check(keras.__version__, keras.backend.backend())
