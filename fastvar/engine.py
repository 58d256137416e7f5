"""How an optimizer's step runs (layer 6): its passes, the stages around the rules, clipping, accumulation."""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvar import kernels, state, threads
from fastvar.buffers import Array, Extents
from fastvar.constraints import BUILTIN, NonNeg
from fastvar.kernels import reference
from fastvar.kernels.atomic import Atomic
from fastvar.kernels.numpy_plan import spoilt
from fastvar.passes import DOWN, Between, clip_units, copying, scratch
from fastvar.variable import Structure, Variable, zeroed

if TYPE_CHECKING:
    from fastvar.optimizer import Optimizer

PARALLEL = 2**15  # elements below which a step is serial anyway, so that threads need not be asked for
RATES = ("learning_rate", "lr")  # what may change without changing how gradients are conditioned


class Refused(Exception):
    """A step that `nonfinite` refuses, with the numbers of spoilt variables, and whether by their gradients."""


class Resolved:
    """The hyperparameters of a group as plain attributes, four times as quick to read as in a namespace."""

    def __init__(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)


class Engine:
    """Everything about a step that stays the same until the optimizer, its groups or variables change.

    Without special options it has at most 29 attributes: of an object with more, CPython reads all more slowly.
    """

    def __init__(self, optimizer: Optimizer, labels: list[str]) -> None:
        self.version = Structure.version
        self.optimizer = optimizer
        self.variables = optimizer._variables
        self.labels = labels
        self.frozen = {i for i, v in enumerate(self.variables) if not v.trainable}
        self.parallel = sum(v.size for v in self.variables) >= PARALLEL
        self.accumulate = optimizer.gradient_accumulation_steps or 1
        self._number_groups()
        self._plan()
        self._set_stages_of_variables()
        self.read_hyperparameters()

    @property
    def several(self) -> bool:
        """Whether the rule takes several passes."""
        return len(self.plans) > 1

    @property
    def staged(self) -> bool:
        """Whether a step is more than one pass, uninterrupted each; gradients are zeroed last."""
        return self.several or self.fragile or self.accumulate > 1

    @property
    def clips(self) -> bool:
        """Whether gradients are scaled to a norm of theirs."""
        return self.own.clipnorm is not None or self.own.global_clipnorm is not None

    # Planning.

    def _number_groups(self) -> None:
        """Number the pairs of group and kind that there are: the variables of one share their scalars."""
        number_of: dict[tuple[int, str], int] = {}
        self.group_of = np.zeros(len(self.variables), np.intp)
        for k, group in enumerate(self.optimizer.groups):
            for v in group.variables:
                number = number_of.setdefault((k, self.optimizer.kind(v)), len(number_of))
                self.group_of[self.optimizer._index[id(v)]] = number
        self.numbered = [*number_of]

    def _plan(self) -> None:
        optimizer = self.optimizer
        slots_of: dict[str, Any] = optimizer._state
        adaptive = optimizer.adaptive_clipnorm is not None
        of_group = [[copying()] * adaptive + [*optimizer.passes(kind)] for _, kind in self.numbered]
        arrays = [v._array for v in self.variables]
        averages = [v._array for v in slots_of["average"]] if optimizer.use_ema else None
        self.plans: list[Any] = []
        passes = [*zip(*of_group, strict=True)]
        directions = [scratch(self.variables) for _ in passes[1:]]
        self.formulas = [[one.scalars for one in of_pass] for of_pass in passes]
        early: list[Array] = []  # slots that are written before the last pass
        for k, of_pass in enumerate(passes):
            last = k == len(passes) - 1
            slots = [
                [slots_of[name][i]._array for name in of_pass[self.group_of[i]].slots] for i in range(len(arrays))
            ]
            early += [] if last else itertools.chain(*slots)
            rules = [one.rule for one in of_pass]
            plan = reference.Plan if isinstance(rules[0], reference.Rule) else kernels.Plan
            self.plans.append(
                plan(
                    optimizer._owner,
                    rules,
                    self.labels,
                    arrays,
                    slots,
                    self.group_of,
                    averages if last else None,
                    None if last else directions[k],
                )
            )
        self.first, self.last = self.plans[0], self.plans[-1]
        if self.several:  # what the later passes write is not to be a gradient either
            self.directions, self.clipped = directions, scratch(self.variables) if adaptive else []
            self.largest = np.array([np.finfo(v.dtype).max for v in self.variables])
            self.early = early
            places = {"": self.variables, **{f"{name} of ": of_slot for name, of_slot in slots_of.items()}}
            self.extents = Extents(
                (f"{optimizer._owner}: {what}{label}", place._array)
                for what, of_label in places.items()
                for label, place in zip(self.labels, of_label, strict=True)
                if place is not None
            )
        self.fragile = isinstance(rules[0], reference.Rule)
        if self.accumulate > 1:  # adding up is gradient descent with a learning rate of -1
            self.accumulators = [v._array for v in slots_of["gradient_accumulator"]]
            rule, none = kernels.RULES["gradient_descent"], [()] * len(arrays)
            self.adding = kernels.Plan(
                optimizer._owner, rule, self.labels, self.accumulators, none, [0] * len(arrays)
            )

    def _set_stages_of_variables(self) -> None:
        penalties = [v.regularizer for v in self.variables]
        self.first.stages["l1"] = [p.l1 if p else 0 for p in penalties]
        self.l2 = np.array([2 * p.l2 if p else 0 for p in penalties])
        self.last.stages["nonneg"] = [type(v.constraint) is NonNeg for v in self.variables]
        self.constrained = [i for i, v in enumerate(self.variables) if v.constraint]
        self.constrained_after = [i for i in self.constrained if not self.last.stages["nonneg"][i]]
        for i in self.constrained:
            if type(self.variables[i].constraint) in BUILTIN:  # an axis that is not there shows here
                self._projected(self.variables[i])
        by_call = bool(self.constrained) and self.accumulate > 1
        self.fragile = self.fragile or by_call or bool(self.constrained_after)
        self.decaying = np.array([self.optimizer.decays(v) for v in self.variables], float)

    def read_hyperparameters(self) -> None:
        """Resolve the hyperparameters of each group; note the scheduled ones."""
        optimizer = self.optimizer
        self.scheduled: list[tuple[Any, Any, Any]] = []
        self.own: Any = self._resolved(optimizer._parameters, "")
        self.hyper = [
            self._resolved({**optimizer._parameters, **optimizer.groups[k]._own}, kind, k)
            for k, kind in self.numbered
        ]
        self.taken = [*zip(self.formulas[0], self.hyper, strict=True)]
        self.guard = self.own.nonfinite != "ignore"
        self.changing = any(p.name not in RATES for _, p, _ in self.scheduled)
        decays = optimizer.says("decay") or any(hyper.weight_decay for hyper in self.hyper)
        self.decay_varies = decays and bool(self.scheduled or optimizer.numbers())
        self.varies = self.decay_varies or self.clips or self.own.use_ema
        self.unbegun = [i for i, begun in enumerate(optimizer._numbers.get("begun", ())) if not begun]
        kept = self.guard and bool(optimizer.numbers())  # which taking the scalars may change
        special = self.varies or self.staged or self.constrained or self.unbegun or kept
        self.plain = not special  # nothing to check, snapshot, fill in or undo: the run is all of the step
        self.first.stages["clip"] = 1
        if not self.changing:
            self._set_conditions()
        self.last.stages["decay"] = 0  # until the schedules are known, which `_vary_stages` needs
        if not self.scheduled:
            self._set_decay()

    def _resolved(self, values: dict[str, Any], kind: str, group: int = 0) -> Any:
        resolved = Resolved(values | {"slots": tuple(self.optimizer.slots), "kind": kind, "group": group})
        for name, parameter in type(self.optimizer).parameters.items():
            if parameter.scheduled and callable(values[name]):
                self.scheduled.append((resolved, parameter, values[name]))
        return resolved

    def _set_conditions(self) -> None:
        unscale = self.optimizer.sign / (self.own.loss_scale_factor or 1)
        if self.accumulate > 1:
            self.adding.stages["scale"] = unscale
        self.first.stages["scale"] = 1 / self.accumulate if self.accumulate > 1 else unscale
        self.first.stages["limit"] = math.inf if self.own.clipvalue is None else self.own.clipvalue
        self.first.stages["l2"] = self.l2 + self._of_variables(self.optimizer.penalty)

    def _set_decay(self) -> None:
        self.last.stages["decay"] = self._of_variables(self.optimizer.decay)

    def _of_variables(self, rate: Any) -> Array:
        rates: Array = np.array([rate(h) for h in self.hyper] or [0.0])[self.group_of] * self.decaying
        return rates

    # Stepping.

    def step(self, grads: list[Any], count: list[int], zero: bool) -> None:
        """Check everything, then update; `count[0]` is the number of calls before this one, counted up."""
        given = grads
        if self.frozen and len(grads) == len(self.group_of):
            grads = [None if i in self.frozen else g for i, g in enumerate(grads)]
        if self.scheduled:
            self._follow_schedules()
        calls = count[0]
        iteration = calls // self.accumulate
        workers = threads.get_num_threads() if self.parallel else 1
        if not self.first.bind(grads, zero) and not self.frozen:
            raise ValueError(f"{self.optimizer._owner}: no variable has a gradient")
        plain = self.plain and not (zero and self.frozen)
        before = [] if plain or not (self.staged or self.guard or self.clips) else self._copied(count, workers)
        scalars = []
        for formula, hyper in self.taken:  # a plain loop: this is the hot path of small models
            scalars.append(formula(hyper, iteration + 1))
        if plain:
            if found := self.first.run(scalars, workers, count, None, self.guard):
                self._refuse(found, self._zeros(grads) if zero else [])
            return
        beginnings = state.beginnings(self.optimizer, self.unbegun, grads)
        before += [(place, place.copy()) for place, _ in beginnings]
        zeros = self._zeros(given) if zero else []  # those of frozen variables, too
        after = [zeroed(self.variables[i], given[i]) for i in self.frozen if given[i] is not None and zero]
        if zero and self.staged:
            after = zeros
            self.first.bind(grads)
        found = []
        try:
            with Atomic(before, after, None if self.fragile else count):
                self._step(grads, scalars, beginnings, count, calls, workers)
        except Refused as refused:
            (found,) = refused.args
        if found:
            self._refuse(found, zeros)

    def _zeros(self, grads: list[Any]) -> list[tuple[Any, Any]]:
        return [zeroed(v, g) for v, g in zip(self.variables, grads, strict=True) if g is not None]

    def _step(
        self,
        grads: list[Any],
        scalars: list[Any],
        beginnings: list[Any],
        count: list[int],
        calls: int,
        workers: int,
    ) -> None:
        """Make a step of which any part may fail."""
        iteration = calls // self.accumulate
        if self.several:
            self._refuse_shared(grads)
        self.present = self._updated(grads, calls)
        self._begin(beginnings)
        if self.accumulate > 1:
            self._accumulate(grads, calls, workers)
        if self.varies:
            self._vary_stages(iteration, workers)
        if self.several:
            self._run(self.first, scalars, workers)
            self._finish(iteration, workers, count)
        else:
            self._run(self.first, scalars, workers, count)
        if self.constrained:
            self._constrain(grads, calls)

    def _run(self, plan: Any, scalars: list[Any], workers: int, count: Any = None, commits: Any = None) -> None:
        if self.guard and any(spoilt(place, value) for place, value in commits or ()):
            raise Refused([(i, False) for i, there in enumerate(self.present) if there])
        if found := plan.run(scalars, workers, count, commits, self.guard):
            first = plan not in self.plans[1:]  # of the others, gradients are directions
            raise Refused([(i, by_gradient and first) for i, by_gradient in found])

    def _refuse(self, found: list[tuple[int, bool]], zeros: list[Any]) -> None:
        """Raise an error that says what a step would spoil; or zero the gradients, and count it as skipped."""
        if self.own.nonfinite == "raise":
            names = [self.labels[i] for i, by_gradient in found if by_gradient]
            what = "gradient of" if names else "what the step makes of"
            names = names or [self.labels[i] for i, _ in found]
            raise ValueError(f"{self.optimizer._owner}: {what} {', '.join(names)} must be finite")
        skipped = self.optimizer._numbers["skipped"]
        with Atomic([], [*zeros, (skipped, np.asarray(skipped + 1))]):
            pass

    def _refuse_shared(self, grads: list[Any]) -> None:
        for name, gradient in zip(self.labels, grads, strict=True):
            if isinstance(gradient, (np.ndarray, Variable)):
                array = np.asarray(gradient)
                if array.flags.c_contiguous:  # of others a copy was bound
                    self.extents.refuse(array, f"{self.optimizer._owner}: gradient of {name}")

    def _follow_schedules(self) -> None:
        for resolved, parameter, schedule in self.scheduled:
            setattr(resolved, parameter.name, self.optimizer._evaluate(parameter, schedule))
        if self.changing:
            self._set_conditions()

    def _finish(self, iteration: int, workers: int, count: list[int]) -> None:
        """Run the passes behind the first."""
        for k in range(1, len(self.plans)):
            between = self._between(k, iteration + 1, workers)
            plan = self.plans[k]
            plan.stages["scale"] = np.minimum(between.sizes, self.largest)  # what its dtype holds; NaN passes
            plan.bind(between.directions)
            scalars = [f(h, iteration + 1) for h, f in zip(self.hyper, self.formulas[k], strict=True)]
            if plan is self.last:
                self._run(plan, scalars, workers, count, between.commits)
            else:
                self._run(plan, scalars, workers)

    def _between(self, k: int, t: int, workers: int) -> Between:
        """Return what the optimizer makes of the directions that pass k - 1 has written."""
        directions = [d if there else None for d, there in zip(self.directions[k - 1], self.present, strict=True)]
        hyper, decay = [self.hyper[g] for g in self.group_of], self.last.stages["decay"]
        adaptive = self.own.adaptive_clipnorm is not None
        between = Between(k - adaptive, t, self.variables, hyper, self.hyper, directions, decay, workers)
        with np.errstate(all="ignore"):
            if adaptive and k == 1:
                self._clip_units(between)
            elif any(self.present):
                self.optimizer.between(between)
        return between

    def _clip_units(self, between: Between) -> None:
        for i, g in enumerate(between.directions):
            if g is not None:
                clip_units(self.own.adaptive_clipnorm, self.variables[i]._array, g, self.clipped[i])
                between.directions[i] = self.clipped[i]

    def _copied(self, count: list[int], workers: int) -> list[tuple[Any, Any]]:
        """Copy what the step could leave half-done; return the places and what they hold now."""
        places, copies = self._room
        kernels.copy(copies, places, workers)
        return [*zip(places, copies, strict=True), (count, [*count])]

    @functools.cached_property
    def _room(self) -> tuple[list[Array], list[Array]]:
        """What a step could leave half-done (the last pass is whole or nothing), and room for copies of it."""
        places = [plan.stages for plan in self.plans] + [*self.optimizer._numbers.values()]
        if self.fragile:
            places += [v._array for v in [*self.variables, *self.optimizer.variables]]
        if self.accumulate > 1:
            places += [self.adding.stages] if self.fragile else [self.adding.stages, *self.accumulators]
        if self.several and not self.fragile:
            places += self.early
        return places, [np.empty_like(place) for place in places]

    def _vary_stages(self, iteration: int, workers: int) -> None:
        """Fill in the stages that change from step to step."""
        if self.decay_varies:
            self._set_decay()
        if self.clips:
            self.first.stages["clip"] = self._coefficients(workers)
        if self.own.use_ema:
            self._average(iteration)

    def _average(self, iteration: int) -> None:
        every = self.own.ema_overwrite_frequency
        self.last.stages["average"] = self.own.ema_momentum if iteration else 0  # first: a copy
        due = every is not None and (iteration + 1) % every == 0
        self.last.stages["overwrite"] = [v.trainable for v in self.variables] if due else 0

    def _coefficients(self, workers: int) -> Any:
        """Return what clipping by norm multiplies the gradients with, of each variable or of all."""
        self.first.stages["clip"] = 1
        each = self.own.clipnorm is not None
        limit: Any = self.own.clipnorm or self.own.global_clipnorm
        norms: Any = np.sqrt(self.first.sums_of_squares(each, workers))
        if not np.isfinite(norms).all():  # or their squares are not
            norms, limit = self._norms_scaled_down(workers), limit * DOWN
            norms = norms if each else np.array([math.hypot(*norms)])
        if not each and not np.isfinite(norms[0]):
            return math.nan  # as in Keras: nothing may pass for clipped
        return limit / np.maximum(norms, limit)

    def _norms_scaled_down(self, workers: int) -> Any:
        """Return the norm of each gradient times `DOWN`: finite if the gradient is."""
        norms: Any = np.sqrt(self.first.sums_of_squares(True, workers)) * DOWN
        huge = [v.dtype == np.float64 for v in self.variables] & ~np.isfinite(norms)
        stages = self.first.stages.copy()
        try:
            for field in ("scale", "l2", "l1"):
                self.first.stages[field][huge] *= DOWN
            norms[huge] = np.sqrt(self.first.sums_of_squares(True, workers))[huge]
        finally:
            self.first.stages[...] = stages
        return norms

    def _begin(self, beginnings: list[tuple[Any, Any]]) -> None:
        """Write what takes the weights before this step (see `state.beginnings`)."""
        for place, value in beginnings:
            place[...] = value
            self.optimizer._stale = True  # the next step looks anew for what has not begun

    def _accumulate(self, grads: list[Any], calls: int, workers: int) -> None:
        """Add the gradients up; bind the sums at the call that updates, else nothing."""
        accumulated = self.optimizer._numbers["accumulated"]
        self.adding.bind(grads)
        self._run(self.adding, [(-1.0,)], workers)
        sums = [a if there else None for a, there in zip(self.accumulators, self.present, strict=True)]
        self.first.bind(sums, True)
        if self._updates(calls):
            accumulated[...] = 0
            for i in self.frozen:
                self.accumulators[i][...] = 0
        else:
            accumulated[[g is not None for g in grads]] = 1

    def _updated(self, grads: list[Any], calls: int) -> list[bool]:
        """Return which variables this call updates; in accumulation, those that got gradients since the last."""
        if self.accumulate == 1:
            return [g is not None for g in grads]
        if not self._updates(calls):
            return [False] * len(grads)
        pairs = zip(grads, self.optimizer._numbers["accumulated"], strict=True)
        return [(g is not None or bool(before)) and i not in self.frozen for i, (g, before) in enumerate(pairs)]

    def _updates(self, calls: int) -> bool:
        return (calls + 1) % self.accumulate == 0

    def _constrain(self, grads: list[Any], calls: int) -> None:
        """Project the variables that had a gradient; NonNeg has run inside the pass, if that was an update."""
        updates = self._updates(calls)
        concerned = self.present if updates else [g is not None for g in grads]
        for i in self.constrained_after if updates else self.constrained:
            if concerned[i]:  # as in Keras, which constrains at every call
                variable = self.variables[i]
                projected = self._projected(variable)
                if self.guard and spoilt(projected, variable.value):
                    raise Refused([(i, False)])
                variable.value[...] = projected

    def _projected(self, variable: Variable) -> Any:
        projected = np.asarray(variable.constraint(variable.value))  # type: ignore[misc]
        if projected.shape != variable.shape or projected.dtype.kind not in "fiub":
            raise ValueError(
                f"{self.optimizer._owner}: constraint of {variable!r} must return real numbers of shape "
                f"{variable.shape}, got {projected.dtype} of shape {projected.shape}"
            )
        return projected
