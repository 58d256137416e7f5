"""What a master keeps of a parameter of 16 bits: a tensor that lies as it does, "master" in its state."""

from __future__ import annotations

from typing import Any

import torch

from fastvar.checkpoint.pytorch import as_array, as_tensor
from fastvar.formats import Master
from fastvar.masters import join, parted, rest_of
from fastvar.torch.optim.reading import CLASSES, KEPT, arithmetic, refused

MASTER = "master"  # its name in the state of a parameter
ANEW = "; without it, a new one begins at the weights"


def kept_of(owner: str, label: str, p: Any, state: dict[str, Any], keeps: bool) -> dict[str, Any]:
    """Return what the master of a parameter keeps, by its name in the state; nothing if it has no master.

    That is the tensor in its state, a copy of it that lies as the parameter does, or a new one.
    """
    if p.dtype not in KEPT:
        return {}
    if not keeps:
        if p.dtype is torch.float16:
            raise ValueError(f"{owner}: {label} is float16, which needs master=True")
        return {}
    found = state.get(MASTER)
    if found is None:
        return {MASTER: like(p, as_tensor(rest_of(as_array(p))))}
    plain = type(found) in CLASSES and found.layout is torch.strided and not found.is_inference()
    if not plain or (found.dtype, found.shape, found.device) != (KEPT[p.dtype], p.shape, p.device):
        wanted = f"a dense {KEPT[p.dtype]} tensor of shape {(*p.shape,)} on the CPU"
        raise refused(owner, f"master of {label}", found, wanted, ANEW)
    return {MASTER: found if found.stride() == p.stride() else like(p, found)}


def has_begun(p: Any, state: dict[str, Any]) -> bool:
    """Return False if PyTorch has made slots before the first step, as Adagrad does, and in 16 bits."""
    return p.dtype not in KEPT or "step" not in state or bool(state["step"])


def like(p: Any, values: Any) -> Any:
    """Return a new tensor of the values that lies as the parameter does."""
    return torch.empty_like(p, dtype=values.dtype, requires_grad=False).copy_(values.detach())


def full(p: Any, value: float) -> Any:
    """Return a new slot of a parameter that is filled with a value."""
    return torch.full_like(p, value, dtype=arithmetic(p), requires_grad=False)


def exact(p: Any, rest: Any = None) -> Any:
    """Return the numbers with which rules compute as a new tensor that lies as the parameter does."""
    if rest is None:
        return like(p, p.detach().to(arithmetic(p)))
    return like(p, as_tensor(join(Master(as_array(p.detach().contiguous()), as_array(rest.contiguous())))))


@torch.no_grad()
def write(p: Any, rest: Any, values: Any) -> None:
    """Write float32 numbers into a parameter and what its master keeps."""
    for tensor, part in zip((p, rest), parted(as_array(p), values.numpy()), strict=True):
        tensor.copy_(as_tensor(part))
