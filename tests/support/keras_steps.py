"""Steps of `fastvar.keras.optimizers` beside those of Keras's own classes, on the backend of this process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import fastvar.keras.optimizers as ours

BACKEND = keras.backend.backend()
SAME_MUON = hasattr(keras.optimizers.Muon(), "adam_weight_decay")  # since Keras 3.13, it means the same
NAMES = [name for name in ours.classes.__all__ if name != "Muon" or SAME_MUON]
SHAPES = {"dense/kernel": (7, 5), "dense/bias": (5,), "norm/gain": (3, 2, 4), "scale": (), "square": (6, 6)}
STEPS = 8
BOUND = 2e-5  # as in tests/optimizers/test_keras.py: Keras computes the scalars of a step in float32

OWN: dict[str, list[dict[str, Any]]] = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    "Adam": [{}, {"amsgrad": True, "beta_2": 0.75}],
    "AdamW": [{}, {"amsgrad": True}],
    "RMSprop": [{}, {"momentum": 0.5}, {"centered": True}, {"centered": True, "momentum": 0.5}],
    "Ftrl": [{}, {"l1_regularization_strength": 0.01, "l2_regularization_strength": 0.1, "beta": 0.5}],
    "Muon": [{}, {"exclude_layers": ["kernel"], "nesterov": False}, {"rms_rate": None}],
    "ScheduleFreeAdamW": [{}, {"warmup_steps": 5}],
}
EVERY_OWN = [(name, own) for name in NAMES for own in OWN.get(name, [{}])]
IDS = [f"{name}-{','.join(f'{k}={v}' for k, v in own.items()) or 'default'}" for name, own in EVERY_OWN]


def values(seed: int = 5) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in SHAPES.values()]


def variables(dtype: str = "float32", constraint: Any = None) -> list[Any]:
    made = []
    for name, value in zip(SHAPES, values(), strict=True):
        with keras.name_scope(name.split("/", maxsplit=1)[0] if "/" in name else "alone"):
            made.append(keras.Variable(value, dtype=dtype, name=name.split("/")[-1]))
        made[-1].constraint = constraint
    return made


def gradients(t: int, dtype: str = "float32", missing: Any = ()) -> list[Any]:
    given = values(seed=100 + t)
    return [None if i in missing else keras.ops.convert_to_tensor(g.astype(dtype)) for i, g in enumerate(given)]


def make(library: Any, name: str, **options: Any) -> Any:
    own = {key: value() if callable(value) else value for key, value in options.items()}
    return getattr(library, name)(**{"learning_rate": 0.0625, **own})


def apply(optimizer: Any, grads: list[Any], of: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns of missing gradients, and divides by 0 in Lamb
        optimizer.apply(grads, of)


def pair(name: str, dtype: str = "float32", constraint: Any = None, **options: Any) -> list[Any]:
    """Return our optimizer and its variables, then Keras's."""
    made: list[Any] = []
    for library in (ours, keras.optimizers):
        of = variables(dtype, constraint)
        optimizer = make(library, name, **options)
        optimizer.build(of)
        made += [optimizer, of]
    return made


def follow(
    name: str,
    dtype: str = "float32",
    missing: Callable[[int], Any] = lambda t: (),
    each: Callable[[int, Any, Any], object] = lambda t, optimizer, of: None,
    **options: Any,
) -> Any:
    """Compare weights and state with Keras's after each step, and return our optimizer.

    Before each step, call `each` for both.
    """
    mine, of, other, theirs = pair(name, dtype, **options)
    for t in range(STEPS):
        for optimizer, its in ((mine, of), (other, theirs)):
            each(t, optimizer, its)
            apply(optimizer, gradients(t, dtype, missing(t)), its)
        assert_same(mine, of, other, theirs, f"step {t}")
    assert (mine.kernel_steps, mine.keras_steps, mine.keras_reason) == (STEPS, 0, None)
    return mine


def assert_same(mine: Any, of: list[Any], other: Any, theirs: list[Any], what: str) -> None:
    for v, w in zip(of, theirs, strict=True):
        assert_close(v, w, f"{what}: {v.path}")
    unused = {
        id(v) for v in getattr(other, "_v", ()) if v.ndim >= 2
    }  # Adafactor's, made anew from rows and columns
    for v, w in zip(mine.variables, other.variables, strict=True):
        assert v.dtype == w.dtype
        if id(w) not in unused:
            assert_close(v, w, f"{what}: {v.path}")


def assert_close(mine: Any, other: Any, what: str) -> None:
    a, b = as_array(mine).astype(float), as_array(other).astype(float)
    np.testing.assert_allclose(a, b, rtol=0, atol=BOUND * np.abs(b).max(initial=1), err_msg=what)


def as_array(variable: Any) -> Any:
    return np.array(keras.ops.convert_to_numpy(variable.value))


def everything(optimizer: Any, of: list[Any]) -> list[bytes]:
    return [as_array(v).tobytes() for v in [*of, *optimizer.variables]]


def move(variables: list[Any]) -> None:
    """Give variables new memory with the same numbers."""
    for v in variables:
        copy = keras.ops.copy(v.value)
        v._value = copy if BACKEND == "numpy" else type(v._value)(copy.detach(), False)


def trained_matrix(optimizer: Any, dtype: str, transposed: bool) -> Any:
    """Return a matrix after three steps of the kernels, which may lie transposed in memory (with torch)."""
    v = keras.Variable(np.random.default_rng(4).standard_normal((64, 80)), dtype=dtype)
    if transposed:
        v._value.data = v._value.data.t().contiguous().t()
    optimizer.build([v])
    rng = np.random.default_rng(3)
    for _ in range(3):
        optimizer.apply([keras.ops.convert_to_tensor(rng.standard_normal((64, 80)).astype("float32"))], [v])
    assert optimizer.kernel_steps == 3
    return v
