"""The stages around a rule: one record per variable, whose layout `stages.pxi` shares.

A plan owns an array of these records (`Plan.stages`), which the optimizer fills. Every field begins with its
neutral value, for which the stage is skipped.
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
    "decay": 0.0,  # w -= decay * w, decoupled weight decay times the learning rate
    "average": 0.0,  # momentum of the moving average of w, where the plan has one
    "overwrite": 0.0,  # 1: w = average
    "nonneg": 0.0,  # 1: w = 0 where w < 0
}
STAGES = np.dtype([(name, np.float64) for name in NEUTRAL])

BLOCK = 1024  # elements of a block: the unit of stages, of tasks and of partial norms
LANES = 16  # running sums of a norm within a block
TINY = {np.dtype(t): float(2**14 * np.finfo(t).tiny) for t in (np.float32, np.float64)}  # see flush, rules.pxi


def neutral(n: int) -> npt.NDArray[Any]:
    """Return `n` records of neutral values."""
    records = np.empty(n, STAGES)
    for name, value in NEUTRAL.items():
        records[name] = value
    return records
