"""Keras's variables of 16 bits for tests, and copies of them in float32."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import fastvar.keras.optimizers as ours
from fastvar.formats import Master
from fastvar.masters import join
from tests.support.keras_steps import NAMES, apply, as_array, make

SHAPES = {"embedding": (70, 64), "long": (5000,), "bias": (70,)}
EMA = {"use_ema": True, "ema_momentum": 0.75}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "many": {"weight_decay": 0.25, "global_clipnorm": 1.5, **EMA, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 2, "clipnorm": 0.5},
    "bfloat16": {"slot_dtype": "bfloat16", "seed": 7},
    "8bit": {"slot_dtype": "8bit", "slot_dtype_min_size": 0},
}
CHOICES = [("bfloat16", True), ("bfloat16", False), ("float16", True)]
every_class = pytest.mark.parametrize("name", NAMES)
every_choice = pytest.mark.parametrize(("dtype", "master"), CHOICES)
every_dtype = pytest.mark.parametrize("dtype", ["bfloat16", "float16"])


def values(seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]


def variables(dtype: str, constraint: Any = None) -> list[Any]:
    of = [keras.Variable(value, dtype=dtype, name=name) for name, value in zip(SHAPES, values(5), strict=True)]
    for v in of:
        v.constraint = constraint
    return of


def copies(of: list[Any]) -> list[Any]:
    """Return variables of float32 with the same numbers and constraints."""
    made = [keras.Variable(as_array(v).astype("float32"), name=v.name) for v in of]
    for v, w in zip(of, made, strict=True):
        w.constraint = v.constraint
    return made


def gradients(t: int, dtype: str = "float32") -> list[Any]:
    return [keras.ops.cast(keras.ops.convert_to_tensor(g), dtype) for g in values(100 + t)]


def step(optimizer: Any, of: list[Any], times: range, dtype: str = "float32") -> None:
    for t in times:
        apply(optimizer, gradients(t, dtype), of)


def built(name: str, of: list[Any], **options: Any) -> Any:
    optimizer = make(ours, name, **options)
    optimizer.build(of)
    return optimizer


def exact(optimizer: Any, of: list[Any]) -> list[Any]:
    """Return the float32 numbers of variables with masters."""
    pairs = zip(of, optimizer._masters, strict=True)
    return [join(Master(as_array(v), as_array(rest))) for v, rest in pairs]


def numbers(optimizer: Any, of: list[Any]) -> list[bytes]:
    return [x.tobytes() for x in exact(optimizer, of)]


def bits(of: list[Any]) -> list[bytes]:
    return [as_array(v).tobytes() for v in of]


def slots(optimizer: Any) -> list[bytes]:
    return bits(optimizer.variables[: len(optimizer.variables) - sum(m is not None for m in optimizer._masters)])
