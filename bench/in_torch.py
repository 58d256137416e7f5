"""The same rules in PyTorch's fused optimizers."""

from __future__ import annotations

from typing import Any

import torch

from bench.as_written import Arrays, Step


def fused(ws: Arrays, gs: Arrays, clip_and_average: bool, name: str, **options: Any) -> Step:
    """Return a step of `torch.optim.<name>(fused=True)`, which works on the memory of the arrays."""
    parameters = [torch.nn.Parameter(torch.from_numpy(w)) for w in ws]
    for parameter, g in zip(parameters, gs, strict=True):
        parameter.grad = torch.from_numpy(g)
    optimizer = getattr(torch.optim, name)(parameters, fused=True, **options)
    if not clip_and_average:
        return optimizer.step  # type: ignore[no-any-return]
    weights = [p.detach() for p in parameters]
    averages = [w.clone() for w in weights]

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, weights, 0.01)

    return step


def set_threads(threads: int) -> int:
    """Set PyTorch's number of threads, and return the one before."""
    before: int = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before
