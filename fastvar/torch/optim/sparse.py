"""Steps from sparse gradients: only the rows that they name are updated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from fastvar import buffers
from fastvar.checkpoint.pytorch import as_array
from fastvar.kernels.atomic import Uninterrupted
from fastvar.optimizers import Adam
from fastvar.slices import IndexedSlices
from fastvar.torch.optim.layouts import Copies
from fastvar.torch.optim.parts import Part
from fastvar.torch.optim.planning import TensorPlan
from fastvar.torch.optim.reading import READER, instead_of, is_sparse, refused

FLAT = -1  # in the place of a number of axes: elements in the order of memory


class LazyAdam(Adam):
    """Adam of `fastvar.optimizers` with PyTorch's names of slots."""

    namespace = "torch.optim."
    slots: ClassVar[Sequence[str]] = ("exp_avg", "exp_avg_sq")

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
        self.sparse_axes: list[int] = [axes_of(p) for p in self.members]
        super()._take_tensors(optimizer)
        tensors = zip(self._lying(), self.sparse_axes, strict=True)
        self.axes: dict[int, int] = {id(x): axes for lying, axes in tensors for x in lying}
        self.copies: Copies = Copies(self.owner)

    def _array(self, tensor: Any, label: str) -> Any:
        """Return the memory of a member or of a slot: with a row for each index of a sparse gradient, or flat."""
        axes = self.axes[id(tensor)]
        if axes == FLAT:
            return super()._array(tensor, label)
        return super()._array(self.copies.of(tensor, label), label).reshape(rows_of(tensor.shape, axes))

    def _make_plan(self) -> None:
        """Make the compiled plan, also of copies."""
        super()._make_plan()
        self.copies.check(self._named(self.slots))

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
            held[i] = self._dense(self.watch.gradients[i], i)
        self.watch.memory["format"] = [-1 if x is None else 0 for x in held]  # which are there
        bound: int = self.plan.bind(held)
        return bound

    def _rows(self, part: Part, i: int) -> IndexedSlices:
        """Return a good sparse gradient as rows, or raise the error of a member or group that cannot take it."""
        p, gradient, label = self.members[i], self.watch.gradients[i], f"gradient of {self.names[i]}"
        if part.decays.l2_rate(part.hyper):
            of = f"such as that of {self.names[i]}"
            raise RuntimeError(f"{self.owner}: weight_decay option is not compatible with sparse gradients, {of}")
        if getattr(part.hyper, "momentum", 0):
            there = instead_of(self.owner)
            raise RuntimeError(f"{self.owner}: momentum must be 0, as the {label} is sparse{there}")
        return slices_of(gradient, p)

    def _dense(self, gradient: Any, i: int) -> Any:
        """Return the memory of a dense gradient that lies as its parameter does, or of a contiguous copy."""
        if self.sparse_axes[i] != FLAT:
            gradient = gradient.contiguous()
        array = buffers.array_at(READER.memory(gradient), self.owner, gradient)
        return array.reshape(self.members_as_arrays[i].shape)

    def step(self, optimizer: Any, to_copy: list[int]) -> bool:
        """Check everything, then update while signals wait; return whether anything was updated."""
        with Uninterrupted():
            self.copies.read()
            done = super().step(optimizer, to_copy)
            if done:
                self.copies.write()
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


def axes_of(p: Any) -> int:
    """Return how many axes number the rows of a parameter; `FLAT` if it is in another order, and has none."""
    dense = 1 if p.is_contiguous() else FLAT
    return int(p.grad.sparse_dim()) if is_sparse(p.grad) else dense


def rows_of(shape: Any, axes: int) -> tuple[int, int]:
    """Return how many rows there are, and their width, if the first axes number them."""
    return math.prod(shape[:axes]), math.prod(shape[axes:])


def slices_of(gradient: Any, p: Any) -> IndexedSlices:
    """Return a sparse gradient of a parameter as rows."""
    values, indices, axes = gradient._values().detach().resolve_neg(), gradient._indices(), gradient.sparse_dim()
    rows = indices[0]
    for k in range(1, axes):
        rows = rows * p.shape[k] + indices[k]
    return IndexedSlices(as_array(values.reshape(-1, rows_of(p.shape, axes)[1])), rows.numpy())
