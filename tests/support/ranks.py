"""A training program for any number of ranks: tests run it in threads, and under mpirun as a script."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash

import fastvar as fv
import fastvar.distributed as fd
from tests.support.cases import CASES, Case

STEPS = 3
TOTAL = 6  # micro-batches of `steps`
SHAPES: dict[str, tuple[int, ...]] = {
    "kernel": (5, 6),
    "long": (2600,),
    "bias": (7,),
    "wide": (3, 400),
    "none": (0,),
}
# Options of optimizers, and of the variables (those that begin with "_").
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "clipvalue": {"clipvalue": 0.5},
    "clipnorm": {"clipnorm": 1.0},
    "global_clipnorm": {"global_clipnorm": 1.0},
    "adaptive_clipnorm": {"adaptive_clipnorm": 0.1},
    "weight_decay": {"weight_decay": 0.125},
    "average": {"use_ema": True, "ema_overwrite_frequency": 2},
    "loss_scale": {"loss_scale_factor": 4.0},
    "skip": {"nonfinite": "skip", "_spoilt": True},
    "8bit": {"slot_dtype": "8bit", "slot_dtype_min_size": 1},
    "bfloat16": {"slot_dtype": "bfloat16", "slot_dtype_min_size": 1},
    "penalties": {"_penalties": True},
    "box": {"_box": True},
    "projection": {"_projection": True},
    "frozen": {"_frozen": True},
    "groups": {"_groups": True},
    "schedule": {"learning_rate": fv.schedules.ExponentialDecay(0.125, 1, 0.5)},
}
NOT_PLAIN = {"average", "skip", "box", "projection", "schedule"}  # accumulation does these at every call


def taken(case: Case, options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the options that a class has."""
    known = _parameters(case.id)
    return {name: value for name, value in options.items() if name in known}


@functools.cache
def _parameters(id: str) -> set[str]:
    (case,) = (case for case in CASES if case.id == id)
    return {*type(case.make()).parameters}


@functools.cache
def _weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(dtype_of(name)) for name, shape in SHAPES.items()}


def network(options: dict[str, Any]) -> list[fv.Variable]:
    """Return the variables: a matrix, two that can be cut, one of float64 and an empty one."""
    net = [fv.Variable(values, name=name) for name, values in _weights().items()]
    if options.get("_penalties"):
        net[0].regularizer = fv.regularizers.L2(0.125)
        net[1].regularizer = fv.regularizers.L1(0.125)
    if options.get("_box"):
        net[1].constraint = fv.constraints.Box(-1.0, 1.0)
    if options.get("_projection"):
        net[3].constraint = fv.constraints.MaxNorm(1.0)
    return net


@functools.cache
def gradients(step: int, number: int, spoilt: bool = False) -> list[Any]:
    """Return the gradients of a micro-batch. Some variables have none in some."""
    random = np.random.default_rng([step, number])
    grads: list[Any] = [random.normal(size=shape).astype(dtype_of(name)) for name, shape in SHAPES.items()]
    if step == 1:
        grads[number % 3] = None
        grads[4] = None
    if spoilt and step == 1 and number == 0:
        grads[1][2000] = np.nan
    return grads


def dtype_of(name: str) -> type:
    return np.float64 if name == "wide" else np.float32


def structured(net: list[fv.Variable], options: dict[str, Any]) -> Any:
    groups = [*net[:2], {"variables": net[2:], "learning_rate": 0.25}]
    return groups if options.get("_groups") else net


def digest(net: list[fv.Variable]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(v.value.tobytes() for v in net))


def train(world: fd.World, case: Case, options: dict[str, Any], total: int, order: str) -> str:
    """Train, and return a digest of the weights."""
    net = network(options)
    optimizer = fd.Distributed(case.make(**taken(case, options)), world, total, order)
    optimizer.build(structured(net, options))
    for step in range(STEPS):
        if options.get("_frozen"):
            net[1].trainable = step != 1
        for number in optimizer.micro_batches():
            optimizer.add(gradients(step, number, "_spoilt" in options))
        optimizer.step()
    return digest(net)


def accumulate(case: Case, options: dict[str, Any], total: int) -> str:
    """Train in one process that accumulates."""
    net = network(options)
    optimizer = case.make(**taken(case, options), gradient_accumulation_steps=total if total > 1 else None)
    optimizer.build(structured(net, options))
    for step in range(STEPS):
        if options.get("_frozen"):
            net[1].trainable = step != 1
        for number in range(total):
            optimizer.apply(gradients(step, number, "_spoilt" in options), net)
    return digest(net)


def steps(optimizer: fd.Distributed, options: dict[str, Any], numbers: range) -> None:
    """Make the steps of these numbers."""
    for step in numbers:
        for number in optimizer.micro_batches():
            optimizer.add(gradients(step, number, "_spoilt" in options))
        optimizer.step()


def alone(program: Callable[[fd.World], Any]) -> Any:
    """Return what a program returns in a world of one process."""
    with fd.world() as world:
        return program(world)


def main(ids: list[str], total: int) -> None:
    """Train with some of the cases, and print the digests on rank 0."""
    with fd.world(timeout=120) as world:
        for case in CASES:
            if case.id in ids:
                for order in ("tree", "sequence"):
                    for name in ("none", "global_clipnorm", "skip"):
                        result = train(world, case, OPTIONS[name], total, order)
                        if world.rank == 0:
                            print(case.id, order, name, result)


if __name__ == "__main__":
    main(sys.argv[2:], int(sys.argv[1]))
