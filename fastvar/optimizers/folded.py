"""What several optimizers fold into their scalars."""

from __future__ import annotations

from math import sqrt
from typing import Any


def unbiased_root(beta: float, t: int) -> float:
    """Return what the root of a second moment of decay `beta` is multiplied with at update `t`."""
    return 1 / sqrt(1 - beta**t)


def has_momentum(optimizer: Any) -> bool:
    """Return whether any group of an optimizer has a `momentum` other than 0, or one that may become so."""
    values = [optimizer._parameters["momentum"], *(group._own.get("momentum", 0) for group in optimizer.groups)]
    return any(callable(value) or value != 0 for value in values)
