"""What stays true of a step on torch tensors until a parameter, a slot or a flag changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fastvar import buffers, kernels, threads
from fastvar.formats import Master
from fastvar.kernels import rounding
from fastvar.kernels.atomic import Uninterrupted
from fastvar.kernels.tensors import Places, Watch
from fastvar.optimizer.clipping import norm_of_all
from fastvar.optimizer.planning import PARALLEL
from fastvar.optimizer.step import not_finite
from fastvar.torch.optim import masters, slot_formats
from fastvar.torch.optim.keywords import EMA
from fastvar.torch.optim.masters import MASTER
from fastvar.torch.optim.parts import REFUSED, Part
from fastvar.torch.optim.reading import CLASSES, READER, check, instead_of, is_sparse, refused, why_copied

CLIP_EPSILON = 1e-6  # what `torch.nn.utils.clip_grad_norm_` adds to the norm
ALIKE = ("shape", "device", "layout")  # what a slot has in common with its parameter
BESIDE = {EMA: "average", MASTER: "master"}  # names in the state, and in messages
SPARSE = "; SGD, Adagrad and SparseAdam take sparse gradients"
advance: Callable[[Any], None] = torch.autograd.graph.increment_version


class TensorPlan:
    """A step on those parameters, the members, that have a gradient or a state.

    It makes slots, but puts them into the optimizer's state only when a step has been found good.
    """

    def __init__(self, optimizer: Any, lists: list[list[Any]]) -> None:
        self.owner: str = type(optimizer).__name__
        self.optimizer_seed: int = optimizer.seed
        self.carries: tuple[str, ...] = optimizer.carries
        self.most: float | None = optimizer.max_grad_norm
        self.ema: float | None = optimizer.ema
        self.nonfinite: str = optimizer.nonfinite
        self.guard: bool = self.nonfinite != "ignore"
        if optimizer._averaged:
            raise RuntimeError(f"{self.owner}: the parameters hold their averages; step after `with`")
        self.groups: list[Part] = []
        self.members: list[Any] = []
        self.names: list[str] = []
        self.copied: dict[str, str] = optimizer._copied
        self.numbers_of: list[int] = []  # the number of each member among all parameters
        number = itertools.count()
        for k, group in enumerate(optimizer.param_groups):
            for name in REFUSED:
                if group.get(name):
                    raise ValueError(f"{self.owner}: {name} must be False here{instead_of(self.owner)}")
            keywords = optimizer._keywords_of(group)
            part: Part = optimizer.part_class(optimizer.rule_class, group, k, keywords)
            part.read_options(group)
            self.groups.append(part)
            first = len(self.members)
            for i, p in enumerate(group["params"]):
                n = next(number)
                if p.grad is None and not optimizer.state.get(p):
                    continue
                self.members.append(p)
                self.names.append(name_of(group, i, n))
                self.numbers_of.append(n)
            part.members = slice(first, len(self.members))
        self.parts: list[Part] = [part for part in self.groups if part.members.stop > part.members.start]
        rounded = any(part.keywords["slot_dtype"] or not part.keywords["master"] for part in self.groups)
        self.counted: bool = optimizer.counts_steps or rounded  # random bits depend on the count
        if self.members:
            self._take_tensors(optimizer)
            self.watch: Watch = Watch(READER, lists, self.numbers_of, [*self._lying()])
            self.places_of_scales: Places = Places(READER, [x for of in self.scales for x in of.values()])
            self._make_plan()

    @staticmethod
    def check_parameter(owner: str, label: str, p: Any) -> None:
        """Raise the error of a parameter that kernels cannot update."""
        check(owner, label, p)

    @staticmethod
    def check_gradient(owner: str, label: str, gradient: Any, p: Any) -> None:
        """Raise the error of a gradient that cannot even be copied."""
        if type(gradient) not in CLASSES or gradient.layout is not torch.strided or gradient.device != p.device:
            raise refused(
                owner, label, gradient, "a dense tensor on the CPU", SPARSE if is_sparse(gradient) else None
            )
        if gradient.shape != p.shape:
            raise ValueError(f"{owner}: {label} must have shape {(*p.shape,)}, got {(*gradient.shape,)}")

    # Tensors.

    def _take_tensors(self, optimizer: Any) -> None:
        """Find the slots and counts of members, and make what there is not."""
        self.slots: list[dict[str, Any]] = []  # of each member; codes of those in 8 bits
        self.scales: list[dict[str, Any]] = []
        self.beside: list[dict[str, Any]] = []  # its average, and what its master keeps, if there are any
        self.averaged: bool = not self.ema or any(EMA in of for of in optimizer.state.values())
        self.new_state: list[tuple[Any, dict[str, Any]]] = []
        begun: list[float] = []
        left: list[list[float]] = []
        for part in self.parts:
            for i in range(part.members.start, part.members.stop):
                p, state = self.members[i], optimizer.state.get(self.members[i]) or {}
                self.check_parameter(self.owner, self.names[i], p)
                self.slots.append({})
                self.scales.append({})
                keeps: bool = part.keywords["master"]
                self.beside.append(masters.kept_of(self.owner, self.names[i], p, state, keeps))
                begun_state = state if masters.has_begun(p, state) else {}
                found = {n: slot_formats.found_in(begun_state, n) for n in part.slots if part.rule.has_slot(n, p)}
                for name, slot in found.items():
                    self._take_slot(part, name, i, slot)
                if self.ema:
                    self.beside[i][EMA] = self._slot(part, EMA, i, state.get(EMA))
                self.new_state.append((p, self._kept_of(i, part, state) | self.beside[i]))
                whole = all(slot is not None for slot in found.values())
                begun.append(float(state.get("step", 0.0)) if self.counted else float(whole))
                left.append([float(state.get(name, 0.0)) for name in self.carries])
        self.counts: Any = self._flat("step", begun) if self.counted else np.array(begun)
        self.carried: list[Any] = [self._flat(name, [of[k] for of in left]) for k, name in enumerate(self.carries)]
        self.one: Any = self.counts.dtype.type(1)

    def _take_slot(self, part: Part, name: str, i: int, found: Any) -> None:
        """Set a slot of a member in the format that it should have."""
        p, label = self.members[i], f"slot {name} of {self.names[i]}"
        wanted = slot_formats.format_for(part.keywords, part.rule, name, p)
        if wanted is None:
            self.slots[i][name] = self._slot(part, name, i, slot_formats.decoded(self.owner, label, found, p))
            return
        if found is None and (first := part.rule.initial(name, p, part.hyper)):
            found = masters.full(p, first)
        if wanted == "bfloat16":
            self.slots[i][name] = slot_formats.in_bfloat16(self.owner, label, found, p)
        else:
            self.slots[i][name], self.scales[i][name] = slot_formats.in_8_bits(self.owner, label, found, p)

    def _kept_of(self, i: int, part: Part, state: dict[str, Any]) -> dict[str, Any]:
        """Return the slots of a member as its state will have them."""
        kept: dict[str, Any] = {}
        for name, slot in self.slots[i].items():
            if name in self.scales[i]:
                kept |= {name + slot_formats.CODES: slot, name + slot_formats.SCALES: self.scales[i][name]}
            elif name in state or torch_keeps(name, part.hyper):
                kept[name] = slot
        return kept

    def _flat(self, name: str, values: list[float]) -> Any:
        """Let the state of every member have a number under `name`; return all of them as one array."""
        flat = torch.tensor(values, dtype=of_default())
        for i, (_, kept) in enumerate(self.new_state):
            kept[name] = flat[i]
        return flat.numpy()

    def _slot(self, part: Part, name: str, i: int, found: Any) -> Any:
        """Return a slot that lies like its parameter: the one found, a copy of it, or a new one."""
        p, label = self.members[i], f"slot {name} of {self.names[i]}"
        if found is None and (name == EMA or name in part.rule.weight_copies):
            return masters.exact(p, self.beside[i].get(MASTER))
        if found is None:
            return masters.full(p, part.rule.initial(name, p, part.hyper))
        same = isinstance(found, torch.Tensor) and all(getattr(found, k) == getattr(p, k) for k in ALIKE)
        if same and READER.memory(found, like=p) is None:
            found = masters.like(p, found)
        check(self.owner, label, found, p)
        return found

    def _lying(self) -> Iterator[list[Any]]:
        """Yield the tensors that lie as a member does, for each: itself, its slots, and what is beside it."""
        of_members = zip(self.members, self.slots, self.beside, strict=True)
        yield from ([p, *slots.values(), *beside.values()] for p, slots, beside in of_members)

    def _named(self, slots: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Yield all tensors that a step updates, with these slots, and their names."""
        for name, p, of, beside in zip(self.names, self.members, slots, self.beside, strict=True):
            yield name, p
            yield from ((f"slot {slot} of {name}", x) for slot, x in of.items())
            yield from ((f"{BESIDE[what]} of {name}", x) for what, x in beside.items())

    def _array(self, tensor: Any, label: str) -> Any:
        if not tensor.is_floating_point():  # codes, or lower bits
            return slot_formats.flat(tensor)
        return buffers.array_at(READER.memory(tensor), f"{self.owner}: {label}")

    def _beside(self, what: str) -> list[Any]:
        """Return the memory of the average or the master of each member, None if it has none."""
        return [
            self._array(of[what], f"{BESIDE[what]} of {name}") if what in of else None
            for of, name in zip(self.beside, self.names, strict=True)
        ]

    def _memory(self, i: int, slot: str) -> Any:
        """Return the memory of a slot of a member as plans take it."""
        array = self._array(self.slots[i][slot], f"slot {slot} of {self.names[i]}")
        scales = self.scales[i].get(slot)
        return array if scales is None else slot_formats.memory_of(array, scales)

    def _make_plan(self) -> None:
        """Make the compiled plan, in which the members of a part share scalars."""
        part_of = [k for k, part in enumerate(self.parts) for _ in self.members[part.members]]
        rules = [part.rule.rule() for part in self.parts]
        self.members_as_arrays: list[Any] = [
            self._array(p, name) for p, name in zip(self.members, self.names, strict=True)
        ]
        pairs = zip(self.members_as_arrays, self._beside(MASTER), strict=True)
        weights = [array if rest is None else Master(array, rest) for array, rest in pairs]
        slots = [[self._memory(i, name) for name in of] for i, of in enumerate(self.slots)]
        self.plan: Any = kernels.Plan(self.owner, rules, self.names, weights, slots, part_of, self._beside(EMA))
        self.plan.stages["average"] = (self.averaged and self.ema) or 0.0  # at first, a copy
        self.scalars_of_members: bool = False  # whether every member has scalars of its own
        self.conditions: list[tuple[float, float, float]] = [(1.0, 0.0, 0.0)] * len(self.parts)
        self.parallel: bool = sum(w.size for w in self.members_as_arrays) >= PARALLEL

    # Steps.

    def read_gradients(self, lists: list[list[Any]], optimizer: Any) -> list[int] | None:
        """Return the members whose gradient must be copied, or None if the plan is stale."""
        if len(lists) != len(self.groups):
            return None
        groups = optimizer.param_groups
        for part in self.groups:
            if not part.read_options(groups[part.number]):
                return None
        if any(self.scales) and not self._has_scales(optimizer):
            return None
        return self.watch.read_gradients(lists, optimizer.state)

    def _has_scales(self, optimizer: Any) -> bool:
        """Return whether the scales of slots are where they were; slots of the state itself are watched."""
        kept = dict(self.new_state) if self.new_state else optimizer.state
        names = [(p, n + slot_formats.SCALES) for p, of in zip(self.members, self.scales, strict=True) for n in of]
        held: bool = self.places_of_scales.hold([kept[p].get(name) for p, name in names])
        return held

    def hold(self, to_copy: list[int]) -> int:
        """Check the gradients, and hold them for a step; return how many there are."""
        for i in to_copy:
            self._replace(i)
        bound: int = self.plan.bind(self.watch.memory)
        return bound

    def step(self, optimizer: Any, to_copy: list[int]) -> bool:
        """Check everything, then update; return whether anything was updated."""
        bound = self.hold(to_copy)
        present = None if bound == len(self.members) else self.watch.memory["format"] >= 0
        if not bound:
            return False
        cohorts = self._cohorts(present)
        if not self.scalars_of_members and any(of and of.count(of[0]) != len(of) for of in cohorts):
            self.plan.share_scalars(range(len(self.members)))
            self.scalars_of_members = True
        rows, left = self._scalars(self._unscale(optimizer, self.plan), cohorts)
        more = self.counts + (self.one if present is None else present * self.one)
        commits = [(self.counts, more if self.counted else np.minimum(more, 1))]
        for k, array in enumerate(self.carried):
            new = np.array([of[k] for of in left], array.dtype)
            commits.append((array, new if present is None else np.where(present, new, array)))
        if self.plan.rounds:
            rounding.set_seeds(self.plan.seeds, self.optimizer_seed, self.counts + 1, self.numbers_of)
        changed = self.members if present is None else [*itertools.compress(self.members, present)]
        if self.guard:  # which may leave everything as it is
            with Uninterrupted():
                if not (found := self._run(optimizer, rows, commits)):
                    advance(changed)
        else:
            advance(changed)
            found = self._run(optimizer, rows, commits)
        if found:
            return self._refuse(optimizer, found)
        if not self.averaged:
            self.averaged, self.plan.stages["average"] = True, self.ema
        return True

    def _run(self, optimizer: Any, rows: list[Any], commits: list[Any]) -> list[tuple[int, bool]]:
        """Run the compiled update; return the members that the guard refused."""
        found: list[tuple[int, bool]]
        workers = self._workers()
        if not self.new_state:
            found = self.plan.run(rows, workers, None, commits, self.guard)
        else:
            with self._committed(optimizer, count := [0]):
                found = self.plan.run(rows, workers, count, commits, self.guard)
        return found

    @contextmanager
    def _committed(self, optimizer: Any, count: list[int]) -> Iterator[None]:
        """Put slots and counts into the optimizer's state; take them out again if `count` has not changed."""
        new, first = self.new_state, count[0]
        before = [(p, {**optimizer.state[p]} if p in optimizer.state else None) for p, _ in new]
        try:
            self._commit(optimizer)
            yield
        finally:
            if count[0] == first:
                self.new_state = new
                for p, state in before:
                    optimizer.state.pop(p, None)
                    if state is not None:
                        optimizer.state[p] = state

    def _commit(self, optimizer: Any) -> None:
        """Put slots and counts into the optimizer's state."""
        for i, (p, kept) in enumerate(self.new_state):
            state = optimizer.state[p] if kept else optimizer.state.get(p, {})
            ours = {EMA, MASTER}.union(*map(slot_formats.names_of, self.slots[i]))
            for former in ours & state.keys() - kept.keys():
                del state[former]
            state.update(kept)
        self.new_state = []
        self.watch.remember(optimizer.state)

    def _workers(self) -> int:
        """Return the number of threads of a step."""
        return threads.get_num_threads() if self.parallel else 1

    def _unscale(self, optimizer: Any, plan: Any) -> float:
        """Return the factor of all gradients, which the plan holds: unscaling and clipping by their norm."""
        scale = getattr(optimizer, "grad_scale", None)  # of torch.amp.GradScaler
        unscale = 1.0 if scale is None else 1 / scale.item()
        if self.most is None:
            return unscale
        kept = plan.stages.copy()
        try:
            plan.stages["scale"], plan.stages["l2"] = 1.0, 0.0
            norm: float = norm_of_all(plan, self.members_as_arrays, self._workers()) * unscale
        finally:
            plan.stages[...] = kept
        optimizer.grad_norm = norm
        if np.isnan(norm):
            return unscale if self.guard else norm  # a guarded run must find out whose gradient is NaN
        return unscale * min(1.0, float(self.most / (norm + CLIP_EPSILON)))

    def _refuse(self, optimizer: Any, found: list[tuple[int, bool]]) -> bool:
        """Raise an error that names the bad parameters, or count the step as skipped; return False."""
        if self.nonfinite == "raise":
            raise not_finite(self.owner, self.names, found)
        optimizer.skipped += 1
        return False

    def _replace(self, i: int) -> None:
        """Let the kernels read a copy of a gradient that lies like its parameter."""
        p, gradient = self.members[i], self.members[i].grad
        label = f"gradient of {self.names[i]}"
        self.check_gradient(self.owner, label, gradient, p)
        copy = torch.empty_like(p, dtype=gradient.dtype, requires_grad=False).copy_(gradient.detach())
        if not self.watch.replace(i, copy):
            raise refused(self.owner, label, gradient, "real numbers")
        self.copied[self.names[i]] = why_copied(gradient, p)

    def _cohorts(self, present: Any) -> list[list[Any]]:
        """Return the counts, and numbers carried, of those members of each part that have gradients."""
        counts = self._numbers()
        if present is None:
            return [counts[part.members] for part in self.parts]
        return [[*itertools.compress(counts[part.members], present[part.members])] for part in self.parts]

    def _numbers(self) -> list[Any]:
        """Return of each member its count, and the number that it carries if there is one."""
        counts: list[Any] = self.counts.tolist()
        return [*zip(counts, self.carried[0].tolist(), strict=True)] if self.carried else counts

    def _scalars(self, unscale: float, cohorts: list[list[Any]]) -> tuple[list[Any], list[Any]]:
        """Set the stages; return the scalars of each group of the plan, and what each member carries on."""
        rows: list[Any] = []
        left: list[Any] = []
        numbers = self._numbers() if self.scalars_of_members else []
        for k, part in enumerate(self.parts):
            hyper = part.hyper
            sign, l2, decay = (
                part.rule.gradient_sign(hyper),
                part.decays.l2_rate(hyper),
                part.decays.decay_rate(hyper),
            )
            if (condition := (sign * unscale, l2, decay)) != self.conditions[k]:
                self.conditions[k] = condition
                stages = self.plan.stages[part.members]
                stages["scale"], stages["l2"], stages["decay"] = condition
            if self.scalars_of_members:
                made = {cohort: self._row(part, cohort) for cohort in {*numbers[part.members]}}
                rows += [made[cohort][0] for cohort in numbers[part.members]]
                left += [made[cohort][1] for cohort in numbers[part.members]]
            else:
                row, carried = self._row(part, cohorts[k][0] if cohorts[k] else 0.0)
                rows.append(row)
                left += [carried] * (part.members.stop - part.members.start) if self.carried else []
        return rows, left

    def _row(self, part: Part, cohort: Any) -> tuple[Any, list[float]]:
        """Return the scalars of a cohort, and what its members carry to their next update."""
        hyper, formula = part.hyper, part.rule.scalars
        if not self.carried:
            return formula(hyper, int(cohort) + 1), []
        count, hyper.carried = cohort or (0.0, 0.0)
        row = formula(hyper, int(count) + 1)
        left = [hyper.left]
        if len(self.carries) > 1:  # "mu" of ASGD: what its next update takes
            left.append(formula(hyper, int(count) + 2)[part.rule.rule().scalars.index("take")])
        return row, left


def torch_keeps(slot: str, hyper: Any) -> bool:
    """Return whether PyTorch keeps a slot, too: its centered RMSprop has no buffer if there is no momentum."""
    return not (slot == "momentum_buffer" and getattr(hyper, "centered", False)) or bool(hyper.momentum)


def of_default() -> torch.dtype:
    """Return the dtype that PyTorch counts steps in."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def name_of(group: dict[str, Any], i: int, number: int) -> str:
    """Return the name of parameter `i` of a group, which has a number among all."""
    return group["param_names"][i] if "param_names" in group else f"parameter {number}"
