"""Trees of variables, for the tests that match gradients to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastvar as fv
from fastvar.module import walk

SHAPE = (2,)  # of every variable: only paths tell them apart


def variable(**options: Any) -> fv.Variable:
    return fv.Variable(np.zeros(SHAPE), **options)


def distinct(count: int) -> list[Any]:
    return [np.array([k + 1.0, -k - 1.0]) for k in range(count)]


def assert_trained(variables: list[fv.Variable], gradients: list[Any]) -> None:
    """Check that one step of `SGD(1.0)` has used the right gradient for every variable."""
    for v, g in zip(variables, gradients, strict=True):
        np.testing.assert_array_equal(v, 0 if g is None else -np.asarray(g))


class Pair(NamedTuple):
    second: Any
    first: Any


@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any
    activation: str = "relu"
    sizes: tuple[int, ...] = (3, 4)


class Net(fv.Module):
    def __init__(self, make: Callable[[], Any] = variable) -> None:
        self.scale = make()
        self.encoder = [Layer(make(), make()), {"b": make(), "a": make()}]
        self.note = "no variable"
        self.table = np.zeros(3)


def of_net(net: Net) -> dict[str, Any]:
    return dict(walk(net))


PATHS = ["scale", "encoder/0/kernel", "encoder/0/bias", "encoder/1/b", "encoder/1/a"]
G = dict(zip(PATHS, distinct(5), strict=True))
NESTED = {
    "encoder": (
        {"bias": G["encoder/0/bias"], "kernel": G["encoder/0/kernel"]},
        {"a": G[PATHS[4]], "b": G[PATHS[3]]},
    ),
    "scale": G["scale"],
}
