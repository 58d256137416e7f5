"""Which optimizers must update whole variables on one rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastvar.constraints import number_bounds
from fastvar.kernels import reference
from fastvar.optimizer import Optimizer
from fastvar.place import Place


def reason(optimizer: Optimizer, variables: Sequence[Place]) -> str | None:
    """Return what needs whole variables, or None if they can be cut anywhere between blocks."""
    shaped = [name for name in ("kind_of", "has_slot", "slot_shape") if optimizer.overrides(name)]
    one = optimizer.pass_of("") if not shaped else None
    if one is None or one.sums or one.matrices:
        return f"{type(optimizer).__name__}, whose rule depends on whole variables,"
    if isinstance(one.rule, reference.Rule) and one.rule.whole:
        return f"{type(optimizer).__name__}, whose rule is in NumPy,"
    if optimizer.adaptive_clipnorm is not None:
        return "adaptive_clipnorm"
    if any(group.slot_dtype for group in optimizer.groups) or optimizer.slot_dtype:
        return "slot_dtype"
    for v in variables:
        low, high = number_bounds(v.constraint)
        if v.constraint and low == -np.inf and high == np.inf:
            return f"the constraint of {v.name!r}"
    return None
