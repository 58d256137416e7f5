"""The same rules in other libraries' optimizers of PyTorch's parameters: DeepSpeed and bitsandbytes."""

from __future__ import annotations

import os
from typing import Any

from fastvar.benchmark.cases import Case
from fastvar.benchmark.contest import Contender, Prepared
from fastvar.benchmark.in_torch import parameters_of

_BITSANDBYTES: dict[str, dict[str, Any]] = {
    "adam": {"name": "Adam"},
    "lion": {"name": "Lion", "betas": (0.9, 0.99)},
    "momentum": {"name": "SGD", "momentum": 0.9},
}


def _deepspeed(case: Case) -> Prepared:
    """Its Adam for processors, which is compiled when it is first used: that takes a minute."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    parameters, weights = parameters_of(case)
    return Prepared(DeepSpeedCPUAdam(parameters, lr=0.001, adamw_mode=False).step, lambda: weights)


def _bitsandbytes(case: Case) -> Prepared:
    import bitsandbytes

    parameters, weights = parameters_of(case)
    arguments = dict(_BITSANDBYTES[case.algorithm.name])
    optimizer = getattr(bitsandbytes.optim, arguments.pop("name"))
    return Prepared(optimizer(parameters, lr=0.001, **arguments).step, lambda: weights)


def _is_float32(case: Case, rules: Any) -> bool:
    return case.dtype == "float32" and case.algorithm.name in rules


CONTENDERS = (
    Contender("DeepSpeed", "deepspeed", lambda case: _is_float32(case, {"adam"}), _deepspeed),
    Contender("bitsandbytes", "bitsandbytes", lambda case: _is_float32(case, _BITSANDBYTES), _bitsandbytes),
)
