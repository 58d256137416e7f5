"""How an optimizer's step runs (layer 5): its plan, the stages around the rule, clipping, accumulation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvar import kernels, threads
from fastvar.constraints import BUILTIN, NonNeg
from fastvar.kernels import reference
from fastvar.variable import Structure, Variable

if TYPE_CHECKING:
    from fastvar.optimizer import Optimizer

PARALLEL = 2**15  # elements below which a step is serial anyway, so that threads need not be asked for


class Resolved:
    """The hyperparameters of a group as plain attributes, four times as quick to read as in a namespace."""

    def __init__(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)


class Engine:
    """Everything about a step that stays the same until the optimizer, its groups or variables change."""

    def __init__(self, optimizer: Optimizer, labels: list[str]) -> None:
        self.version = Structure.version
        self.optimizer = optimizer
        self.scalars = optimizer.scalars
        variables = optimizer._variables
        self.frozen = {i for i, v in enumerate(variables) if not v.trainable}
        self.parallel = sum(v.size for v in variables) >= PARALLEL
        self.accumulate = optimizer.gradient_accumulation_steps or 1
        index_of = optimizer._index
        group_of = np.empty(len(variables), np.intp)
        for k, group in enumerate(optimizer.groups):
            group_of[[index_of[id(v)] for v in group.variables]] = k
        self.group_of = group_of
        self.shape = self.shape_of(optimizer)
        self._plan(labels)
        self._set_stages_of_variables()
        self.read_hyperparameters()

    @staticmethod
    def shape_of(optimizer: Optimizer) -> tuple[object, ...]:
        """Return what the plan depends on; while it stays the same, hyperparameters may change freely."""
        return tuple(optimizer.slots), optimizer.use_ema, optimizer.gradient_accumulation_steps

    def _plan(self, labels: list[str]) -> None:
        optimizer, state = self.optimizer, self.optimizer._state
        arrays = [v._array for v in optimizer._variables]
        slots = [[state[name][i]._array for name in optimizer.slots] for i in range(len(arrays))]
        averages = [v._array for v in state["average"]] if optimizer.use_ema else None
        self.rule = optimizer.rule()
        plan = reference.Plan if isinstance(self.rule, reference.Rule) else kernels.Plan
        self.plan = plan(optimizer._owner, self.rule, labels, arrays, slots, self.group_of, averages)
        if self.accumulate > 1:  # adding up is gradient descent with a learning rate of -1
            self.accumulators = [v._array for v in state["gradient_accumulator"]]
            rule, none = kernels.RULES["gradient_descent"], [()] * len(arrays)
            self.adding = kernels.Plan(optimizer._owner, rule, labels, self.accumulators, none, [0] * len(arrays))

    def _set_stages_of_variables(self) -> None:
        variables, stages = self.optimizer._variables, self.plan.stages
        penalties = [v.regularizer for v in variables]
        stages["l1"] = [p.l1 if p else 0 for p in penalties]
        stages["l2"] = [2 * p.l2 if p else 0 for p in penalties]
        stages["nonneg"] = [type(v.constraint) is NonNeg for v in variables]
        self.thawed = np.array([v.trainable for v in variables], float)
        self.constrained = [i for i, v in enumerate(variables) if v.constraint]
        self.constrained_after = [i for i in self.constrained if not stages["nonneg"][i]]
        for i in self.constrained:
            if type(variables[i].constraint) in BUILTIN:  # an axis that is not there shows here
                self._projected(variables[i])
        self.fragile = isinstance(self.rule, reference.Rule) or bool(self.constrained_after)
        self.decaying = np.array([self.optimizer.decays(v) for v in variables], float)

    def read_hyperparameters(self) -> None:
        """Resolve the hyperparameters of each group; note the scheduled ones."""
        optimizer = self.optimizer
        self.scheduled: list[tuple[Any, Any, Any]] = []
        self.own: Any = self._resolved(optimizer._parameters)
        self.hyper = [self._resolved({**optimizer._parameters, **group._own}) for group in optimizer.groups]
        self.changing = any(resolved is self.own and not p.per_group for resolved, p, _ in self.scheduled)
        self._set_stages_of_optimizer()
        self.plan.stages["clip"] = 1
        self.plan.stages["decay"] = 0
        self.decays = any(h.weight_decay for h in self.hyper)
        self.clips = self.own.clipnorm is not None or self.own.global_clipnorm is not None
        self.varies = self.changing or self.decays or self.clips or self.own.use_ema

    def _set_stages_of_optimizer(self) -> None:
        unscale = 1 / (self.own.loss_scale_factor or 1)
        if self.accumulate > 1:
            self.adding.stages["scale"] = unscale
        self.plan.stages["scale"] = 1 / self.accumulate if self.accumulate > 1 else unscale
        self.plan.stages["limit"] = math.inf if self.own.clipvalue is None else self.own.clipvalue

    def _resolved(self, values: dict[str, Any]) -> Any:
        resolved = Resolved(values | {"slots": self.optimizer.slots})
        for name, parameter in type(self.optimizer).parameters.items():
            if parameter.scheduled and callable(values[name]):
                self.scheduled.append((resolved, parameter, values[name]))
        return resolved

    def step(self, grads: list[Any], count: list[int], zero: bool) -> None:
        """Check everything, then update; `count[0]` is the number of calls before this one, counted up."""
        if self.frozen and len(grads) == len(self.group_of):
            grads = [None if i in self.frozen else g for i, g in enumerate(grads)]
        if self.scheduled:
            for resolved, parameter, schedule in self.scheduled:
                setattr(resolved, parameter.name, self.optimizer._evaluate(parameter, schedule))
            if self.changing:
                self._set_stages_of_optimizer()
        calls = count[0]
        iteration = calls // self.accumulate
        scalars = []
        for hyper in self.hyper:  # a plain loop: this is the hot path of small models
            scalars.append(self.scalars(hyper, iteration + 1))
        workers = threads.get_num_threads() if self.parallel else 1
        if not self.plan.bind(grads, zero) and not self.frozen:
            raise ValueError(f"{self.optimizer._owner}: no variable has a gradient")
        undo = self._snapshot(grads if zero else [])
        try:
            if self.accumulate > 1:
                self._accumulate(grads, calls, zero, workers)
            if self.varies:
                self._vary_stages(iteration, workers)
            self.plan.run(scalars, workers, count)
            if self.constrained:
                self._constrain(grads, calls)
        except BaseException:
            if self.fragile or count[0] == calls:
                count[0] = calls
                for array, before in undo:
                    array[...] = before
            raise

    def _snapshot(self, grads: list[Any]) -> list[tuple[Any, Any]]:
        """Copy what would be left half-done by Ctrl-C or a user's own code that fails in a step."""
        if self.fragile:
            places = [v._array for v in [*self.optimizer._variables, *self.optimizer.variables]]
            places += [g for g in grads if g is not None]
        elif self.accumulate > 1:
            places = self.accumulators
        else:
            return []
        return [(array, array.copy()) for array in places]

    def _vary_stages(self, iteration: int, workers: int) -> None:
        """Fill in the stages that change from step to step."""
        if self.decays:
            rates = np.array([h.learning_rate * (h.weight_decay or 0) for h in self.hyper])
            self.plan.stages["decay"] = rates[self.group_of] * self.decaying
        if self.clips:
            self.plan.stages["clip"] = self._coefficients(workers)
        if self.own.use_ema:
            self._average(iteration)

    def _average(self, iteration: int) -> None:
        every = self.own.ema_overwrite_frequency
        self.plan.stages["average"] = self.own.ema_momentum if iteration else 0  # first: a copy
        due = every is not None and (iteration + 1) % every == 0
        self.plan.stages["overwrite"] = self.thawed if due else 0

    def _coefficients(self, workers: int) -> Any:
        """Return what clipping by norm multiplies the gradients with, of each variable or of all."""
        self.plan.stages["clip"] = 1
        each = self.own.clipnorm is not None
        limit: Any = self.own.clipnorm or self.own.global_clipnorm
        norms: Any = np.sqrt(self.plan.sums_of_squares(each, workers))
        if not each and not np.isfinite(norms[0]):
            return math.nan  # as in Keras: nothing may pass for clipped
        return limit / np.maximum(norms, limit)

    def _accumulate(self, grads: list[Any], calls: int, zero: bool, workers: int) -> None:
        """Add the gradients up; bind their mean at the call that updates, else nothing."""
        updates = self._updates(calls)
        self.adding.bind(grads, zero)
        self.adding.run([(-1.0,)], workers)
        pairs = list(zip(grads, self.accumulators, strict=True))
        self.plan.bind([a if updates and g is not None else None for g, a in pairs], True)
        for g, array in pairs:
            if updates and g is None:
                array[...] = 0

    def _updates(self, calls: int) -> bool:
        return (calls + 1) % self.accumulate == 0

    def _constrain(self, grads: list[Any], calls: int) -> None:
        """Project the variables that had a gradient; NonNeg has run inside the pass, if that was an update."""
        for i in self.constrained_after if self._updates(calls) else self.constrained:
            if grads[i] is not None:  # as in Keras, which constrains at every call
                variable = self.optimizer._variables[i]
                variable.value[...] = self._projected(variable)

    def _projected(self, variable: Variable) -> Any:
        projected = np.asarray(variable.constraint(variable.value))  # type: ignore[misc]
        if projected.shape != variable.shape or projected.dtype.kind not in "fiub":
            raise ValueError(
                f"{self.optimizer._owner}: constraint of {variable!r} must return real numbers of shape "
                f"{variable.shape}, got {projected.dtype} of shape {projected.shape}"
            )
        return projected
