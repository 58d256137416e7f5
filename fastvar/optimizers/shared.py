"""What several optimizers share: the scalars of common rules, and whether a momentum is on."""

from __future__ import annotations

from math import sqrt
from typing import Any


def unbiased_root(beta: float, t: int) -> float:
    """Return the factor that corrects the bias of the root of a second moment with decay `beta` at update `t`."""
    return 1 / sqrt(1 - beta**t)


def rectified(rate: float, beta_1: float, beta_2: float, epsilon: float, t: int) -> tuple[float, ...]:
    """Return the scalars of the rule "radam" at update `t` of RAdam."""
    take_1, keep_2, take_2 = 1 - beta_1, beta_2, 1 - beta_2
    rate, decayed = rate / (1 - beta_1**t), beta_2**t
    most = 2 / (1 - beta_2) - 1
    rho = most - 2 * t * decayed / (1 - decayed)
    if rho <= 5:  # too early for a second moment: momentum alone
        scale_m, scale_ratio, epsilon = rate, 0.0, 1.0
    else:
        factor = sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
        scale_m, scale_ratio = 0.0, rate * factor * sqrt(1 - decayed)
    return take_1, keep_2, take_2, scale_m, scale_ratio, epsilon


def momentum_of_keras(rate: float, mu: float, nesterov: bool) -> tuple[float, ...]:
    """Return the scalars of the rule "momentum" with the learning rate inside the momentum."""
    keep, take = mu, -rate
    scale_m, scale_g = (mu, -rate) if nesterov else (1.0, 0.0)
    return keep, take, scale_m, scale_g


def has_momentum(optimizer: Any) -> bool:
    """Return whether the `momentum` of any group of an optimizer is not 0, or follows a schedule."""
    values = [optimizer._parameters["momentum"], *(group._own.get("momentum", 0) for group in optimizer.groups)]
    return any(callable(value) or value != 0 for value in values)
