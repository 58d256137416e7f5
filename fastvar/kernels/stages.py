"""The stages around a rule: one record per variable, whose layout `stages.pxi` shares.

A plan owns an array of these records (`Plan.stages`), which the optimizer fills in. Every field starts at its
neutral value, with which the stage is skipped.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

NEUTRAL = {
    "scale": 1.0,  # gradient *= scale (inverse loss scale, mean over accumulated steps)
    "l2": 0.0,  # twice the L2 coefficient: gradient += l2 * w
    "l1": 0.0,  # gradient += l1 * sign(w)
    "clip": 1.0,  # gradient *= clip, the coefficient of clipping by norm
    "limit": np.inf,  # gradient is clipped to [-limit, limit]
    "size": 1.0,  # gradient *= size, or direction *= size if the rule makes one, after everything else
    "decay": 0.0,  # w -= decay * w, decoupled weight decay times the learning rate
    "step": 1.0,  # w += step * direction, if the rule makes one
    "average": 0.0,  # momentum of the moving average of w, if the plan has one
    "overwrite": 0.0,  # 1: w = average
    "low": -np.inf,  # w is clipped to [low, high] after everything else
    "high": np.inf,
}
STAGES = np.dtype([(name, np.float64) for name in NEUTRAL])
_NEUTRAL = np.array(tuple(NEUTRAL.values()), STAGES)

BLOCK = 1024  # elements of a block: the unit of tasks and of partial sums
LANES = 16  # running sums within a block
STRIP = 2048  # columns of a patch of a matrix whose rows and columns are summed
PATCH = 64  # rows of such a patch, more where rows are short: see `patch_rows`
TINY = {np.dtype(t): float(2**14 * np.finfo(t).tiny) for t in (np.float32, np.float64)}  # see flush, rules.pxi


def patch_rows(columns: int) -> int:
    """Return how many rows of a matrix are summed together."""
    return max(PATCH, 16 * BLOCK // columns)


def neutral(n: int) -> npt.NDArray[Any]:
    """Return `n` records of neutral values."""
    return _NEUTRAL.repeat(n)
