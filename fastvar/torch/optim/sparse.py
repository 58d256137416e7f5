"""Steps from sparse gradients: only the rows that they name are updated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fastvar.kernels.atomic import Uninterrupted
from fastvar.optimizers import Adam
from fastvar.slices import IndexedSlices
from fastvar.torch.optim.planning import Part, TensorPlan, refused


class LazyAdam(Adam):
    """Adam of `fastvar.optimizers` with PyTorch's names of slots."""

    namespace = "torch.optim."
    slots = ("exp_avg", "exp_avg_sq")

    def gradient_sign(self, hyper: Any) -> float:
        return -1.0 if hyper.maximize else 1.0


class SparsePart(Part):
    """A group whose rule has other names for its hyperparameters."""

    def rule_for(self, rule_class: Any, group: dict[str, Any]) -> Any:
        return LazyAdam()

    def numbers(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters of a group under the names of the rule."""
        read = super().numbers(values)
        beta_1, beta_2 = read["betas"]
        names = {"learning_rate": read["lr"], "beta_1": beta_1, "beta_2": beta_2, "epsilon": read["eps"]}
        return names | {"weight_decay": None, "maximize": bool(read.get("maximize"))}


class SparsePlan(TensorPlan):
    """A step from sparse gradients alone."""

    @staticmethod
    def check_gradient(owner: str, label: str, gradient: Any, p: Any) -> None:
        """Raise the error of a gradient that is not sparse, or cannot be read."""
        if type(gradient) is torch.Tensor and gradient.layout is torch.strided:
            raise RuntimeError(f"{owner}: {label} must be sparse; use Adam for dense gradients")
        plain = type(gradient) is torch.Tensor and gradient.layout is torch.sparse_coo
        if not plain or gradient.is_complex() or gradient.device.type != "cpu":
            raise refused(owner, label, gradient, "sparse (COO), real numbers on the CPU")
        limits = torch.tensor(p.shape[: gradient.sparse_dim()]).unsqueeze(1)
        if gradient.shape != p.shape or ((found := gradient._indices()) < 0).any() or (found >= limits).any():
            raise ValueError(f"{owner}: {label} must have the shape {(*p.shape,)}, and indices within it")

    def _take_tensors(self, optimizer: Any) -> None:
        """Find the slots and counts of members, and how many axes of each are sparse."""
        for p, name in zip(self.members, self.names, strict=True):
            if p.grad is not None:
                self.check_gradient(self.owner, f"gradient of {name}", p.grad, p)
        self.sparse_axes = [1 if p.grad is None else p.grad.sparse_dim() for p in self.members]
        super()._take_tensors(optimizer)
        self.axes_of: dict[int, int] = {}
        for p, slots, averages, axes in zip(
            self.members, self.slots, self.averages, self.sparse_axes, strict=True
        ):
            self.axes_of |= {id(x): axes for x in (p, *slots.values(), *averages)}

    def _flat(self, name: str, values: list[float]) -> Any:
        """Let the state of every member have its count, a number as in PyTorch; return all as one array."""
        for (_, kept), value in zip(self.new_state, values, strict=True):
            kept[name] = int(value)
        return np.array(values)

    def _array(self, tensor: Any, label: str) -> Any:
        """Return the memory of a member or of a slot: a row for each index that a gradient can have."""
        if not tensor.is_contiguous():
            raise ValueError(f"{self.owner}: {label} must be contiguous")
        return super()._array(tensor, label).reshape(rows_of(tensor.shape, self.axes_of[id(tensor)]))

    def read_gradients(self, lists: list[list[Any]], optimizer: Any) -> list[int] | None:
        """Return the members whose gradient must be read here, or None if the plan is stale."""
        found = super().read_gradients(lists, optimizer)
        for gradient, axes in zip(self.watch.gradients, self.sparse_axes, strict=True):
            if gradient is not None and gradient.layout is torch.sparse_coo and gradient.sparse_dim() != axes:
                return None
        return found

    def hold(self, to_copy: list[int]) -> int:
        """Check the gradients, and hold them for a step; return how many there are."""
        slices: list[Any] = [None] * len(self.members)
        for i, gradient in enumerate(self.watch.gradients):
            if gradient is not None:
                self.check_gradient(self.owner, f"gradient of {self.names[i]}", gradient, self.members[i])
                slices[i] = slices_of(gradient, self.members[i])
        self.watch.memory["format"] = [-1 if x is None else 0 for x in slices]  # which are there
        bound: int = self.plan.bind(slices)
        return bound

    def step(self, optimizer: Any, to_copy: list[int]) -> bool:
        """Check everything, then update and count; return whether anything was updated."""
        with Uninterrupted():
            done = super().step(optimizer, to_copy)
            for p, count in zip(self.members, self.counts.tolist(), strict=True):
                if done and p.grad is not None:
                    optimizer.state[p]["step"] = int(count)
            self.watch.remember(optimizer.state)
        return done


def rows_of(shape: Any, axes: int) -> tuple[int, int]:
    """Return how many rows there are, and their width, if the first axes number them."""
    return math.prod(shape[:axes]), math.prod(shape[axes:])


def slices_of(gradient: Any, p: Any) -> IndexedSlices:
    """Return a sparse gradient of a parameter as rows."""
    values, indices, axes = gradient._values().detach().resolve_neg(), gradient._indices(), gradient.sparse_dim()
    if values.dtype is torch.bfloat16:  # which NumPy lacks
        values = values.to(p.dtype)
    rows = indices[0]
    for k in range(1, axes):
        rows = rows * p.shape[k] + indices[k]
    return IndexedSlices(values.reshape(-1, rows_of(p.shape, axes)[1]).numpy(), rows.numpy())
