"""What several optimizers fold into their scalars."""

from __future__ import annotations

from math import sqrt
from typing import Any


def unbiased_root(beta: float, t: int) -> float:
    """Return what the root of a second moment of decay `beta` is multiplied with at update `t`."""
    return 1 / sqrt(1 - beta**t)


def rectified(rate: float, beta_1: float, beta_2: float, epsilon: float, t: int) -> tuple[float, ...]:
    """Return what the rule "radam" takes to be RAdam at update `t`."""
    rate, decayed = rate / (1 - beta_1**t), beta_2**t
    most = 2 / (1 - beta_2) - 1
    rho = most - 2 * t * decayed / (1 - decayed)
    if rho <= 5:
        return 1 - beta_1, beta_2, 1 - beta_2, rate, 0.0, 1.0  # no ratio yet
    factor = sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    return 1 - beta_1, beta_2, 1 - beta_2, 0.0, rate * factor * sqrt(1 - decayed), epsilon


def momentum_of_keras(rate: float, mu: float, nesterov: bool) -> tuple[float, ...]:
    """Return what the rule "momentum" takes to have the learning rate inside the momentum."""
    return (mu, -rate, mu, -rate) if nesterov else (mu, -rate, 1.0, 0.0)


def has_momentum(optimizer: Any) -> bool:
    """Return whether any group of an optimizer has a `momentum` other than 0, or one that may become so."""
    values = [optimizer._parameters["momentum"], *(group._own.get("momentum", 0) for group in optimizer.groups)]
    return any(callable(value) or value != 0 for value in values)
