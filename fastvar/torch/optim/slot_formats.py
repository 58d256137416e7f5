"""Slots of tensors in bfloat16 and in 8 bits.

In 8 bits, the state of a parameter holds two tensors for a slot: `exp_avg_codes`, of the shape of the parameter,
and `exp_avg_scales`. When PyTorch loads a state, it casts all tensors to the dtype of the parameter. That is
undone for these, for slots in bfloat16, and for everything of parameters of 16 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastvar.buffers import Array
from fastvar.formats import Codes, groups_of
from fastvar.kernels.numpy_formats import NEAREST, decode_codes, encode_codes
from fastvar.optimizer.slots import stored_slots
from fastvar.torch.optim.reading import KEPT, arithmetic, check, refused

CODES, SCALES = "_codes", "_scales"  # at the end of the names of slots in 8 bits


def format_for(keywords: dict[str, Any], rule: Any, name: str, p: Any) -> str | None:
    """Return the format that a slot of a parameter should have, None for that of the parameter."""
    wanted: str | None = keywords["slot_dtype"]
    small = p.numel() < max(keywords["slot_dtype_min_size"], 1)
    return None if small or wanted is None or name not in stored_slots(rule, rule.kind_of(p)) else wanted


def found_in(state: dict[str, Any], name: str) -> Any:
    """Return a slot in the state of a parameter: a tensor, a pair of codes and scales, or None."""
    if name in state:
        return state[name]
    pair = state.get(name + CODES), state.get(name + SCALES)
    return pair if all(part is not None for part in pair) else None


def names_of(name: str) -> tuple[str, ...]:
    """Return all names under which a slot may be in the state of a parameter."""
    return name, name + CODES, name + SCALES


def cast_back(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Let tensors that PyTorch has cast when it loaded a state be those that are there."""
    here, there = (
        [p for group in groups for p in group["params"]]
        for groups in (optimizer.param_groups, state_dict["param_groups"])
    )
    for p, number in zip(here, there, strict=True):
        state = optimizer.state.get(p, {})
        for name, saved in state_dict["state"].get(number, {}).items():
            if not isinstance(saved, torch.Tensor) or name == "step" or saved.dtype == state[name].dtype:
                continue
            if p.dtype in KEPT or saved.dtype is torch.bfloat16 or name.endswith((CODES, SCALES)):
                state[name] = saved.to(p.device, copy=True)


def decoded(owner: str, label: str, found: Any, p: Any) -> Any:
    """Return a slot that was found in the dtype in which rules compute.

    Other dtypes than formats of slots stay as they are. But slots of parameters of 16 bits may have any: PyTorch's
    own have 16 bits.
    """
    if isinstance(found, tuple):
        stored = Codes(*map(flat, checked_pair(owner, label, found, p)))
        values = torch.empty_like(p, dtype=arithmetic(p), requires_grad=False)
        flat(values)[...] = decode_codes(stored)
        return values
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        return found
    return found.to(arithmetic(p)) if found.dtype is torch.bfloat16 or p.dtype in KEPT else found


def in_bfloat16(owner: str, label: str, found: Any, p: Any) -> Any:
    """Return a slot in bfloat16 that lies as its parameter does: the one that was found, or a new one."""
    if isinstance(found, torch.Tensor) and found.dtype is torch.bfloat16 and found.stride() == p.stride():
        return found
    made = torch.zeros_like(p, dtype=torch.bfloat16, requires_grad=False)
    if found is not None:
        value = decoded(owner, label, found, p)
        check(owner, label, value, p)
        made.copy_(value.detach())
    return made


def in_8_bits(owner: str, label: str, found: Any, p: Any) -> tuple[Any, Any]:
    """Return the codes and the scales of a slot: those that were found, or new ones."""
    if isinstance(found, tuple):
        return checked_pair(owner, label, found, p)
    codes = torch.zeros_like(p, dtype=torch.uint8, requires_grad=False)
    scales = torch.zeros(groups_of(p.numel()), dtype=torch.float32)
    if found is not None:
        value = decoded(owner, label, found, p)
        check(owner, label, value, p)
        values = torch.empty_like(p, dtype=torch.float32, requires_grad=False).copy_(value.detach())
        flat(codes)[...], flat(scales)[...] = encode_codes(flat(values), NEAREST)
    return codes, scales


def checked_pair(owner: str, label: str, found: tuple[Any, Any], p: Any) -> tuple[Any, Any]:
    """Return codes and scales in their own dtypes, or raise the error of what is none."""
    for what, tensor, shape in (
        ("codes", found[0], p.shape),
        ("scales", found[1], (groups_of(p.numel()),)),
    ):
        if not isinstance(tensor, torch.Tensor) or tensor.device != p.device or tensor.shape != shape:
            raise refused(owner, f"{what} of {label}", tensor, f"a tensor of shape {(*shape,)} on the CPU")
    codes, scales = found[0].detach().to(torch.uint8), found[1].detach().to(torch.float32).contiguous()
    if codes.stride() != p.stride():
        raise ValueError(f"{owner}: codes of {label} must lie as it does, got strides {codes.stride()}")
    return codes, scales


def flat(tensor: Any) -> Array:
    """Return the elements of a dense tensor as an array, in the order of memory."""
    array: Array = torch.as_strided(tensor.detach(), (tensor.numel(),), (1,)).numpy()
    return array


def memory_of(codes: Array, scales: Any) -> Codes:
    """Return what plans take of a slot in 8 bits."""
    return Codes(codes, np.asarray(flat(scales)))
