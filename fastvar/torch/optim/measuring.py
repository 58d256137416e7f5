"""Steps of rules that need norms or matrices: the core of fastvar's optimizers on the memory of tensors."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from operator import is_
from typing import Any

import numpy as np
import torch

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.checkpoint.pytorch import as_array
from fastvar.formats import Master
from fastvar.kernels.atomic import Uninterrupted
from fastvar.optimizer import given
from fastvar.optimizer.options import Options
from fastvar.optimizer.planning import PARALLEL
from fastvar.optimizer.quantized import Quantized
from fastvar.torch.optim import parts, planning, reading, slot_formats
from fastvar.torch.optim.keywords import EMA, KEYWORDS, OF_GROUPS
from fastvar.torch.optim.layouts import Copies, order_of
from fastvar.torch.optim.masters import MASTER


class Counting:
    """Makes a rule count the updates of each tensor where PyTorch keeps the counts."""

    counts_per_variable = True
    _counts: Any = None  # those of the tensors, if there are any

    def adjust(self, step: Any) -> None:
        super().adjust(step)  # type: ignore[misc]
        if self._counts is not None:
            step.commits.append((self._counts, self._counts + step.present))


@functools.cache
def counting(rule_class: Any) -> Any:
    """Return a class like that of the rule, but `Counting`, and stored under a name of its own."""
    return type(rule_class.__name__, (Counting, rule_class), {"namespace": "torch.optim."})


class MeasuringPart(parts.Part):
    """A group of an optimizer of `fastvar.torch`, whose rule takes every hyperparameter from the group."""

    def rule_for(self, rule_class: Any, group: dict[str, Any]) -> Any:
        return rule_class()


class TensorPlace:
    """The memory of a tensor as a place that an optimizer of fastvar updates."""

    trainable: bool = True
    regularizer: None = None
    constraint: None = None

    rest: Array | None = None  # what its master keeps

    def __init__(self, value: Array, name: str) -> None:
        self.value: Array = value
        self.name: str = name
        self.shape: tuple[int, ...] = value.shape
        self.ndim: int = value.ndim
        self.size: int = value.size
        self.dtype: np.dtype[Any] = value.dtype

    @property
    def memory(self) -> Array | Master:
        return self.value if self.rest is None else Master(self.value, self.rest)

    def _keep_master(self) -> None:
        """Do nothing: `rest` is there if there is to be one."""

    def _zeroing(self, gradient: Any) -> tuple[Any, Any]:
        raise NotImplementedError  # torch.optim.Optimizer.zero_grad does it


class MeasuringPlan(planning.TensorPlan):
    """A step that measures before it updates, in the core of fastvar's optimizers."""

    @staticmethod
    def check_parameter(owner: str, label: str, p: Any) -> None:
        """Raise the error of a parameter that kernels cannot update, of the type that PyTorch raises."""
        if p.is_complex() and hasattr(torch.optim, owner):
            raise RuntimeError(f"{owner} does not support complex parameters, such as {label}")
        reading.check(owner, label, p)

    def _take_tensors(self, optimizer: Any) -> None:
        """Find the slots, the counts and the numbers for all members, and make what there is not."""
        super()._take_tensors(optimizer)
        self.rule: Any = self._made_rule(optimizer)
        self.all_slots: list[dict[str, Any]] = self.slots
        of_members = [*zip(self.members, self.slots, strict=True)]
        self.slots = [{n: x for n, x in of.items() if x.shape == p.shape} for p, of in of_members]
        self.small: list[Any] = [x for p, of in of_members for x in of.values() if x.shape != p.shape]
        self.memory_of_small: list[tuple[int, int, int, int] | None] = [
            reading.READER.memory(x) for x in self.small
        ]
        states = [optimizer.state.get(p) or {} for p in self.members]
        last = states[int(np.argmax(self.counts))]
        self.numbers: dict[str, Any] = {}
        for name, first in self.rule.initial_numbers().items():
            number = torch.tensor(float(last.get(name, first)), dtype=torch.float64)
            self.numbers[name] = number.numpy()
            for _, kept in self.new_state:
                kept[name] = number

    def _made_rule(self, optimizer: Any) -> Any:
        """Return the rule. What cannot differ between groups is that of the first."""
        rule_class, first = optimizer.rule_class, self.groups[0].hyper
        names = [name for name in rule_class.parameters if name not in Options.parameters]
        own = {n: vars(first)[n] for n in names if n in vars(first) and not rule_class.parameters[n].per_group}
        options = {name: optimizer._keywords[name] for name in KEYWORDS.options}
        rule = counting(rule_class)(**own, **options, name=self.owner, use_ema=bool(self.ema))
        rule.ema_momentum = (self.averaged and self.ema) or 0.0  # at first, a copy
        return rule

    def _slot(self, part: parts.Part, name: str, i: int, found: Any) -> Any:
        """Return a slot: the one found, a copy of it, or a new one."""
        p, label = self.members[i], f"slot {name} of {self.names[i]}"
        shape, dtype = torch.Size(part.rule.slot_shape(name, p)), reading.arithmetic(p)
        if shape == p.shape:
            return super()._slot(part, name, i, found)
        if found is None:
            return p.new_zeros(shape, dtype=dtype, requires_grad=False)
        memory = reading.READER.memory(found)
        if memory is None or (found.shape, found.dtype) != (shape, dtype):
            wanted = f"a dense {dtype} tensor of shape {tuple(shape)} on the CPU"
            raise reading.refused(self.owner, label, found, wanted)
        return found if found.is_contiguous() else found.contiguous()

    def _make_plan(self) -> None:
        """Let the rule work on the memory of the members and of their slots."""
        update = self.rule.pass_of("")
        self.copies: Copies = Copies(self.owner)
        by_rows = update.matrices or update.keeps_directions
        self.orders: list[tuple[int, ...] | None] = [None if by_rows else order_of(p) for p in self.members]
        places: list[Any] = [self._member(i) for i in range(len(self.members))]
        slots: dict[str, list[Any]] = {name: [None] * len(places) for name in self.rule.slots}
        for i, of in enumerate(self.all_slots):
            for name, slot in of.items():
                place: Any = self._place(slot, i, f"slot {name} of {self.names[i]}")
                scales = self.scales[i].get(name)
                if scales is not None:
                    dtype = buffers.arithmetic(places[i].dtype)
                    place = Quantized(place.value, slot_formats.flat(scales), dtype, name)
                slots[name][i] = place
        if self.ema:
            slots["average"] = [
                self._place(average, i, f"average of {self.names[i]}")
                for i, average in enumerate(of[EMA] for of in self.beside)
            ]
        formats = [{name: part.keywords[name] for name in OF_GROUPS} for part in self.parts]
        given.take(self.rule, [places[part.members] for part in self.parts], slots, formats)
        self.members_as_arrays = [place.value for place in places]
        self.parallel = sum(place.size for place in places) >= PARALLEL
        state = self.rule._state
        state.numbers.update(self.numbers)
        if self.counted:
            self.rule._counts = self.counts
            state.count[0] = int(self.counts.max())
            state.numbers["missed"][...] = state.count[0] - self.counts
        elif self.ema:
            state.count[0] = int(self.averaged)  # the core begins averages anew at 0
        self.hyper_of_parts: list[Any] = [None] * len(self.parts)
        self._set_hyperparameters()
        self.rule._refreshed()  # it refuses memory that is shared
        self.copies.check(self._named(self.all_slots))

    def _member(self, i: int) -> TensorPlace:
        """Return the memory of a member, with what its master keeps."""
        place, rest = self._place(self.members[i], i, self.names[i]), self.beside[i].get(MASTER)
        if rest is not None:
            place.rest = self._place(rest, i, f"master of {self.names[i]}").value
        return place

    def _place(self, tensor: Any, i: int, name: str) -> TensorPlace:
        """Return the memory of member `i`, or of a slot: with the axes in its order, or of a contiguous copy."""
        order = self.orders[i]
        if order is None:
            tensor = self.copies.of(tensor, name)
        shape = [tensor.shape[axis] for axis in order or range(tensor.ndim)]
        return TensorPlace(self._array(tensor, name).reshape(shape), name)

    def _set_hyperparameters(self) -> None:
        """Give the rule the hyperparameters of the groups where they have changed."""
        hyper = [part.hyper for part in self.parts]
        if not all(map(is_, hyper, self.hyper_of_parts)):
            names = self.rule.parameters.keys()
            own = [{name: x for name, x in vars(of).items() if name in names} for of in hyper]
            given.set_hyperparameters(self.rule, own)
            self.hyper_of_parts = hyper

    # Steps.

    def read_gradients(self, lists: list[list[Any]], optimizer: Any) -> list[int] | None:
        """Return the members whose gradient must be copied, or None if the plan is stale."""
        to_copy = super().read_gradients(lists, optimizer)
        state = self.rule._state
        same = not self.counted or np.array_equal(self.counts, state.count[0] - state.numbers["missed"])
        still = [reading.READER.memory(x) for x in self.small] == self.memory_of_small
        return to_copy if same and still else None

    def hold(self, to_copy: list[int]) -> int:
        """Check the gradients, and hold them for a step; return how many there are."""
        for i in to_copy:
            self._replace(i)
        grads = self._gradients()
        self._set_hyperparameters()
        bound: int = self.rule._refreshed().compiled.bind(grads)
        self.held: list[Any] = grads
        return bound

    def step(self, optimizer: Any, to_copy: list[int]) -> bool:
        """Check everything, then update; return whether anything was updated."""
        bound = self.hold(to_copy)
        grads, self.held = self.held, []
        if not bound:
            return False
        plan = self.rule._refreshed()
        plan.compiled.stages["scale"] = plan.signs() * self._unscale(optimizer, plan.compiled)
        changed = [p for p, gradient in zip(self.members, grads, strict=True) if gradient is not None]
        count = self.rule._state.count
        before = count[0]
        if not self.guard:
            planning.advance(changed)
        with Uninterrupted() if self.guard or self.copies.pairs else nullcontext():
            with self._committed(optimizer, count) if self.new_state else nullcontext():
                self.copies.read()
                self.rule._apply(grads, self.rule._state.variables, False)
            if count[0] != before:
                self.copies.write()
            if self.guard and count[0] != before:
                planning.advance(changed)
        if count[0] == before:
            optimizer.skipped += 1
            return False
        if not self.averaged:
            self.averaged, self.rule.ema_momentum = True, self.ema
        return True

    def _gradients(self) -> list[Any]:
        """Return the gradients of the members, or None, as arrays that lie as their places do."""
        tensors = self.watch.gradients
        arrays: list[Any] = reading.READER.arrays(tensors)
        for i, order in enumerate(self.orders):
            if arrays[i] is None and tensors[i] is not None:  # NumPy has no bfloat16
                arrays[i] = as_array(tensors[i])
            if arrays[i] is not None:
                lying = arrays[i] if order is None else arrays[i].transpose(order)
                arrays[i] = np.asarray(lying, order="C")  # a copy if the member has one
        return arrays
