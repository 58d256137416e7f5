"""Reading tensors: what kernels can use of them, and the errors for the others."""

from __future__ import annotations

from typing import Any

import torch

from fastvar.formats import OF_MASTERS
from fastvar.kernels.tensors import Reader

CLASSES = (torch.Tensor, torch.nn.Parameter)
READER = Reader(CLASSES, torch.strided)
KEPT = {getattr(torch, name): getattr(torch, kept.name) for name, kept in OF_MASTERS.items()}
"""The dtypes of parameters of 16 bits, and those of what masters keep of them."""


def arithmetic(p: Any) -> Any:
    """Return the dtype in which rules compute for a parameter: that of its slots, unless they have a format."""
    return torch.float32 if p.dtype in KEPT else p.dtype


def check(owner: str, label: str, tensor: Any, like: Any = None) -> None:
    """Raise the error of a parameter, or a slot `like` its parameter, that kernels cannot update."""
    known = (torch.float32, torch.float64, *(KEPT if like is None else ()))
    real = isinstance(tensor, torch.Tensor) and tensor.dtype in known
    if real and like is not None and tensor.shape != like.shape:
        raise ValueError(f"{owner}: {label} must have the shape {(*like.shape,)} of it, got {(*tensor.shape,)}")
    good = real and not tensor.is_inference() and READER.memory(tensor, like) is not None
    if not good or (like is not None and arithmetic(like) != tensor.dtype):
        kinds = "float32, float64, bfloat16 or float16" if like is None else f"{arithmetic(like)}"
        raise refused(owner, label, tensor, f"a dense {kinds} tensor on the CPU")


def is_sparse(gradient: Any) -> bool:
    """Return whether a gradient is a sparse tensor of coordinates."""
    return isinstance(gradient, torch.Tensor) and gradient.layout is torch.sparse_coo


def why_copied(gradient: Any, p: Any) -> str:
    """Return why kernels cannot read a gradient where it lies."""
    if gradient.is_neg() or gradient.is_conj() or torch._is_zerotensor(gradient):
        return "it is a view of other numbers"
    if gradient.stride() != p.stride():
        return f"its strides are {gradient.stride()}, those of the parameter {p.stride()}"
    return "it does not begin at a multiple of the size of its elements"


def refused(owner: str, label: str, got: Any, wanted: str, advice: str | None = None) -> TypeError:
    """Return the error of a tensor that kernels cannot use, with the advice or else PyTorch's own class."""
    what = type(got).__name__
    if isinstance(got, torch.Tensor):
        what = f"{got.dtype}, {got.layout} on {got.device} ({what})"
    return TypeError(f"{owner}: {label} must be {wanted}, got {what}{advice or instead_of(owner)}")


def instead_of(owner: str) -> str:
    """Return the end of an error message: PyTorch's own class, if there is one."""
    return f"; use torch.optim.{owner}" if hasattr(torch.optim, owner) else ""
