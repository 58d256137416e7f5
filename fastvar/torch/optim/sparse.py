"""Steps from sparse gradients: only the rows that they name are updated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fastvar import buffers
from fastvar.kernels.atomic import Uninterrupted
from fastvar.optimizers import Adam
from fastvar.slices import IndexedSlices
from fastvar.torch.optim.parts import Part
from fastvar.torch.optim.planning import TensorPlan
from fastvar.torch.optim.reading import READER, instead_of, is_sparse, refused


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


class RowsPlan(TensorPlan):
    """A step from gradients of which some are sparse."""

    @staticmethod
    def check_gradient(owner: str, label: str, gradient: Any, p: Any) -> None:
        """Raise the error of a gradient that cannot be read."""
        if not is_sparse(gradient):
            TensorPlan.check_gradient(owner, label, gradient, p)
            return
        if type(gradient) is not torch.Tensor or gradient.is_complex() or gradient.device.type != "cpu":
            raise refused(owner, label, gradient, "sparse (COO), real numbers on the CPU")
        limits = torch.tensor(p.shape[: gradient.sparse_dim()]).unsqueeze(1)
        if gradient.shape != p.shape or ((found := gradient._indices()) < 0).any() or (found >= limits).any():
            raise ValueError(f"{owner}: {label} must have the shape {(*p.shape,)}, and indices within it")

    def _take_tensors(self, optimizer: Any) -> None:
        """Find the slots and counts of members, and how many axes of each are sparse."""
        for p, name in zip(self.members, self.names, strict=True):
            if p.grad is not None:
                self.check_gradient(self.owner, f"gradient of {name}", p.grad, p)
        self.sparse_axes = [p.grad.sparse_dim() if is_sparse(p.grad) else 1 for p in self.members]
        super()._take_tensors(optimizer)
        self.axes_of: dict[int, int] = {}
        for p, slots, averages, axes in zip(
            self.members, self.slots, self.averages, self.sparse_axes, strict=True
        ):
            self.axes_of |= {id(x): axes for x in (p, *slots.values(), *averages)}

    def _array(self, tensor: Any, label: str) -> Any:
        """Return the memory of a member or of a slot: if contiguous, a row for each index of a sparse gradient."""
        flat = super()._array(tensor, label)
        return flat.reshape(rows_of(tensor.shape, self.axes_of[id(tensor)])) if tensor.is_contiguous() else flat

    def read_gradients(self, lists: list[list[Any]], optimizer: Any) -> list[int] | None:
        """Return the members whose gradient must be read here, or None if the plan is stale."""
        found = super().read_gradients(lists, optimizer)
        for gradient, axes in zip(self.watch.gradients, self.sparse_axes, strict=True):
            if is_sparse(gradient) and gradient.sparse_dim() != axes:
                return None
        return found

    def hold(self, to_copy: list[int]) -> int:
        """Check the gradients, and hold them for a step; return how many there are."""
        held: list[Any] = [None] * len(self.members)
        for part in self.parts:
            for i in range(part.members.start, part.members.stop):
                if (gradient := self.watch.gradients[i]) is not None:
                    self.check_gradient(self.owner, f"gradient of {self.names[i]}", gradient, self.members[i])
                if is_sparse(gradient):
                    held[i] = self._rows(part, i)
        dense = [i for i, x in enumerate(self.watch.gradients) if x is not None and held[i] is None]
        for i in {*dense} & {*to_copy}:
            self._replace(i)
        for i in dense:
            held[i] = self._dense(self.watch.gradients[i], self.members_as_arrays[i])
        self.watch.memory["format"] = [-1 if x is None else 0 for x in held]  # which are there
        bound: int = self.plan.bind(held)
        return bound

    def _rows(self, part: Part, i: int) -> IndexedSlices:
        """Return a good sparse gradient as rows, or raise the error of a member or group that cannot take it."""
        p, gradient, label = self.members[i], self.watch.gradients[i], f"gradient of {self.names[i]}"
        there = instead_of(self.owner)
        if not p.is_contiguous():
            raise ValueError(f"{self.owner}: {self.names[i]} must be contiguous, as its gradient is sparse{there}")
        if part.decays.l2_rate(part.hyper):
            of = f"such as that of {self.names[i]}"
            raise RuntimeError(f"{self.owner}: weight_decay option is not compatible with sparse gradients, {of}")
        if getattr(part.hyper, "momentum", 0):
            raise RuntimeError(f"{self.owner}: momentum must be 0, as the {label} is sparse{there}")
        return slices_of(gradient, p)

    def _dense(self, gradient: Any, like: Any) -> Any:
        """Return the memory of a dense gradient that lies as its parameter does."""
        if gradient.dtype is torch.bfloat16:  # which NumPy lacks
            gradient = gradient.float()
        return buffers.array_at(READER.memory(gradient), self.owner, gradient).reshape(like.shape)

    def step(self, optimizer: Any, to_copy: list[int]) -> bool:
        """Check everything, then update while signals wait; return whether anything was updated."""
        with Uninterrupted():
            done = super().step(optimizer, to_copy)
            if done:
                self._keep_counts(optimizer)
        return done

    def _keep_counts(self, optimizer: Any) -> None:
        """Let the optimizer's state have the new counts, unless they are tensors that it has already."""


class SparsePlan(RowsPlan):
    """A step from sparse gradients alone, whose counts are numbers."""

    @staticmethod
    def check_gradient(owner: str, label: str, gradient: Any, p: Any) -> None:
        """Raise the error of a gradient that is not sparse, or cannot be read."""
        if type(gradient) is torch.Tensor and gradient.layout is torch.strided:
            raise RuntimeError(f"{owner}: {label} must be sparse; use Adam for dense gradients")
        if not is_sparse(gradient):
            raise refused(owner, label, gradient, "sparse (COO), real numbers on the CPU")
        RowsPlan.check_gradient(owner, label, gradient, p)

    def _flat(self, name: str, values: list[float]) -> Any:
        """Let the state of every member have its count, a number as in PyTorch; return all as one array."""
        for (_, kept), value in zip(self.new_state, values, strict=True):
            kept[name] = int(value)
        return np.array(values)

    def _keep_counts(self, optimizer: Any) -> None:
        for p, count in zip(self.members, self.counts.tolist(), strict=True):
            if p.grad is not None:
                optimizer.state[p]["step"] = int(count)
        self.watch.remember(optimizer.state)


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
