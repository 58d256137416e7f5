"""The same rules in PyTorch's optimizers, on each of their paths."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastvar.benchmark.as_written import Arrays
from fastvar.benchmark.cases import Case
from fastvar.benchmark.contest import Contender, Prepared, arrays

NAME = "torch"
_FUSED = {"Adagrad", "Adam", "AdamW", "SGD"}
_MOST_COMPILED = 10  # tensors: compiling more takes minutes


def parameters_of(case: Case) -> tuple[list[Any], Arrays]:
    """Return parameters that have gradients, and the arrays that they share memory with."""
    import torch

    torch.set_num_threads(case.threads)
    weights, gradients = arrays(case)
    parameters = [torch.nn.Parameter(torch.from_numpy(w)) for w in weights]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.from_numpy(gradient)
    return parameters, weights


def _prepare(case: Case, compiled: bool = False, **path: Any) -> Prepared:
    import torch

    parameters, weights = parameters_of(case)
    arguments = dict(case.algorithm.torch or {})
    optimizer = getattr(torch.optim, arguments.pop("name"))(parameters, **path, **arguments)
    plain = [p.detach() for p in parameters]
    averages = [w.clone() for w in plain]

    def with_clip_and_average() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch._foreach_lerp_(averages, plain, 0.01)

    step = with_clip_and_average if case.algorithm.clip_and_average else optimizer.step
    return Prepared(torch.compile(step) if compiled else step, lambda: weights)


def _supports(case: Case, fused: bool = False, most: float = float("inf")) -> bool:
    options = case.algorithm.torch
    return options is not None and (not fused or options["name"] in _FUSED) and len(case.tensors) <= most


CONTENDERS = (
    Contender("torch fused", NAME, partial(_supports, fused=True), partial(_prepare, fused=True)),
    Contender("torch foreach", NAME, _supports, partial(_prepare, foreach=True)),
    Contender("torch", NAME, _supports, _prepare),
    Contender("torch compiled", NAME, partial(_supports, most=_MOST_COMPILED), partial(_prepare, compiled=True)),
)


def set_threads(count: int) -> int:
    """Set PyTorch's number of threads, and return the one before."""
    import torch

    before: int = torch.get_num_threads()
    torch.set_num_threads(count)
    return before
