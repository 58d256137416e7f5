"""Ranks compare what must be the same on all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from fastvar.distributed.world import World
from fastvar.hyper_json import to_json
from fastvar.masters import arrays_of
from fastvar.optimizer import Optimizer
from fastvar.variable import Variable

_HYPER = ("options", "groups")
_SORTED = json.JSONEncoder(sort_keys=True)  # `json.dumps` would make one each time


def described(optimizer: Optimizer, variables: Sequence[Variable]) -> dict[str, Any]:
    """Return as JSON values all that must be the same on all ranks at each step."""
    return {
        "class": f"{optimizer.namespace}{type(optimizer).__name__}",
        "steps": optimizer._steps,
        "options": to_json(optimizer._parameters),
        "groups": [to_json(group._own) for group in optimizer.groups],
        "trainable": [v.trainable for v in variables],
        "numbers": {name: number.tolist() for name, number in optimizer._state.numbers.items()},
    }


class Digests:
    """Digests of what `described` returns. Hyperparameters are encoded again only if they have changed."""

    def __init__(self) -> None:
        self._hyper: Any = None
        self._encoded = ""

    def of(self, description: dict[str, Any]) -> str:
        """Return the digest of a description."""
        if (hyper := hyperparameters(description)) != self._hyper:
            self._hyper, self._encoded = hyper, _SORTED.encode(hyper)
        others = {name: value for name, value in description.items() if name not in _HYPER}
        return xxhash.xxh3_64_hexdigest(f"{self._encoded}{_SORTED.encode(others)}".encode())


def hyperparameters(description: dict[str, Any]) -> list[Any]:
    """Return the hyperparameters in a description."""
    return [description[name] for name in _HYPER]


def digest_of_weights(variables: Sequence[Variable]) -> str:
    """Return a digest of the weights."""
    hasher = xxhash.xxh3_64()
    for v in variables:
        for array in arrays_of(v.memory):
            hasher.update(array.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def refuse_differences(world: World, owner: str, what: str, description: dict[str, Any]) -> None:
    """Raise the same error on all ranks if their descriptions differ: it names a rank and what differs."""
    said = world.agree(f"{what}, comparing", description=description)
    for rank, one in enumerate(said):
        if found := difference(one["description"], said[0]["description"]):
            raise ValueError(f"{owner}: {what}: rank {rank} and rank 0 differ in {found}")


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return where two values differ first, with both values, or None."""
    if one is other:
        return None
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            here = f"{path} {key}".strip()
            if key not in one or key not in other:
                return f"{here}: only one has it"
            if found := difference(one[key], other[key], here):
                return found
        return f"{path}: another order" if [*one] != [*other] else None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found_in = (difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
        return next(filter(None, found_in), None)
    same = one == other or json.dumps(one) == json.dumps(other)  # NaN is not equal to itself
    return None if same else f"{path}: {one!r} and {other!r}"
