"""What stays true of a step until the optimizer, its groups or its variables change."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastvar import buffers, kernels, threads
from fastvar.buffers import Array
from fastvar.constraints import BUILTIN, NonNeg
from fastvar.kernels import reference
from fastvar.optimizer.clipping import by_norm, limit_of_values, units
from fastvar.optimizer.cohorts import Cohorts
from fastvar.optimizer.passes import Pass
from fastvar.optimizer.rule import Rule
from fastvar.optimizer.state import State
from fastvar.place import Place, Structure, label

PARALLEL = 2**15  # elements below which a step is serial anyway, so that threads need not be asked for
RATES = ("learning_rate", "lr")  # what may change without changing how gradients are conditioned


class Resolved:
    """The hyperparameters of a group as plain attributes, four times as quick to read as in a namespace."""

    def __init__(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)


class Accumulation:
    """Where gradients are added up: gradient descent with a learning rate of -1."""

    scalars = ((-1.0,),)

    def __init__(self, rule: Rule, state: State, labels: list[str]) -> None:
        self.steps: int = rule.gradient_accumulation_steps or 1
        slots: Any = state.slots["gradient_accumulator"]
        self.sums: list[Array] = [v.value for v in slots]
        none, group = [()] * len(labels), [0] * len(labels)
        self.plan = kernels.Plan(rule._owner, kernels.RULES["gradient_descent"], labels, self.sums, none, group)

    def updates(self, calls: int) -> bool:
        """Return whether the call after so many is one that updates."""
        return (calls + 1) % self.steps == 0


class Measuring:
    """What it takes to sum something before an update.

    Attributes
    ----------
    directions : list of (ndarray or None)
        Where directions are kept for the rule to replace.
    largest : ndarray
        The largest number of each variable's dtype.
    """

    def __init__(self, variables: list[Place], passes: list[Pass]) -> None:
        self.directions = [
            buffers.empty(v.shape, v.dtype) if one.keeps_directions else None
            for v, one in zip(variables, passes, strict=True)
        ]
        self.largest = np.array([np.finfo(v.dtype).max for v in variables])


class StepPlan:
    """Everything about a step that is true until something changes.

    Without special options it has at most 29 attributes: of an object with more, CPython reads all more slowly.

    Attributes
    ----------
    version : int
        The `Structure.version` that it was made for.
    stale : bool
        Whether hyperparameters have changed since they were read.
    plain : bool
        Whether one run is all of the step: nothing to copy before, to fill in or to undo.
    fragile : bool
        Whether code of users runs among the updates, so that everything must be copied before.
    compiled : Plan
        What runs: the plan of the kernels or, of a rule in NumPy, its twin.
    passes, formulas : list
        How variables are updated, and what gives the scalars of their rule, by group.
    measuring : Measuring or None
        What it takes to sum something before the update, if that is to be done.
    least : int
        With fewer gradients, a step looks at who has none.
    commits : list of (ndarray, ndarray) or None
        State of the cohorts, and what it becomes with the update.
    scheduled : list
        What schedules set: the hyperparameters of a group, a parameter, its schedule.
    """

    def __init__(self, rule: Rule, state: State) -> None:
        self.version = Structure.version
        self.rule, self.state, self.count = rule, state, state.count
        variables = state.variables
        self.labels = [label(v, i) for i, v in enumerate(variables)]
        self.frozen = {i for i, v in enumerate(variables) if not v.trainable}
        self.parallel = sum(v.size for v in variables) >= PARALLEL
        self.accumulation: Accumulation | None = None
        if rule.gradient_accumulation_steps:
            self.accumulation = Accumulation(rule, state, self.labels)
        self.cohorts = Cohorts(rule, state)
        self.least = int(not self.frozen)  # gradients without which a step is looked at
        self.commits: Any = None
        self._plan_pass()
        self._set_stages_of_variables()
        self.read_hyperparameters()
        if self.cohorts.counting:
            self.set_present([True] * len(variables))

    @property
    def group_of(self) -> Array:
        """The number of the group and kind of each variable."""
        return self.cohorts.number_of

    @property
    def staged(self) -> bool:
        """Whether a step is more than one run, uninterrupted each; gradients are zeroed last."""
        return self.fragile or self.accumulation is not None

    @property
    def workers(self) -> int:
        """How many threads a run takes."""
        return threads.get_num_threads() if self.parallel else 1

    # Plans.

    def set_present(self, present: list[bool]) -> None:
        """Make the cohorts of those variables that have a gradient; the others miss the update."""
        if present != self.cohorts.present:
            self.least, self.cohorts.present = len(present) + 1, None  # until all is done
            cohort_of = self.cohorts.part(present)
            self.compiled.share_scalars(cohort_of)
            self.taken = self.cohorts.formulas(self.formulas, self.hyper)
            self.cohorts.present = present
        missed = self.state.numbers["missed"]
        absent = ~np.array(present)
        some = absent.any()
        self.commits = [(missed, missed + absent)] if some else None
        self.least = 0 if self.accumulation else len(present) + bool(some)

    def _plan_pass(self) -> None:
        rule, state = self.rule, self.state
        variables = state.variables
        self.passes = [rule.pass_of(kind) for _, kind in self.cohorts.pairs]
        self.formulas = [one.scalars for one in self.passes]
        rules = [one.rule for one in self.passes]
        average: Any = state.slots["average"] if rule.use_ema else ()
        slots: dict[str, Any] = state.slots
        of_variable = [self.passes[group] for group in self.group_of]
        matrices = self._matrices(of_variable)
        plan = reference.Plan if isinstance(rules[0], reference.Rule) else kernels.Plan
        measures = matrices or any(one.sums for one in self.passes)
        self.measuring = Measuring(variables, of_variable) if measures else None
        self.compiled: Any = plan(
            rule._owner,
            rules,
            self.labels,
            [v.value for v in variables],
            [[slots[name][i].value for name in one.slots] for i, one in enumerate(of_variable)],
            self.group_of,
            [v.value for v in average] or None,
            self.measuring.directions if self.measuring else None,
            sums=[_numbered(one) for one in self.passes],
            direct=[one.step is not None for one in self.passes],
            matrices=matrices,
        )
        self.fragile = isinstance(rules[0], reference.Rule)

    def _matrices(self, of_variable: list[Any]) -> list[tuple[list[Any], bool]]:
        """Return the matrices that have factors: the units of adaptive clipping, and those of the rule."""
        variables = self.state.variables
        matrices: list[tuple[list[Any], bool]] = []
        if self.rule.adaptive_clipnorm is not None:
            matrices.append(([units(v.shape) for v in variables], False))
        if any(one.matrices for one in of_variable):
            pairs = zip(variables, of_variable, strict=True)
            matrices.append(([v.shape[-2:] if one.matrices else None for v, one in pairs], True))
        return matrices

    def _set_stages_of_variables(self) -> None:
        variables = self.state.variables
        penalties = [v.regularizer for v in variables]
        self.compiled.stages["l1"] = [p.l1 if p else 0 for p in penalties]
        self.l2 = np.array([2 * p.l2 if p else 0 for p in penalties])
        self.compiled.stages["nonneg"] = [type(v.constraint) is NonNeg for v in variables]
        self.constrained = [i for i, v in enumerate(variables) if v.constraint]
        for i in self.constrained:
            if type(variables[i].constraint) in BUILTIN:  # an axis that is not there shows here
                projected(self.rule, variables[i])
        by_call = bool(self.constrained) and self.accumulation is not None
        self.fragile = self.fragile or by_call or bool(self.constrained_after)
        self.decaying = np.array([self.rule.decays(v) for v in variables], float)

    @property
    def constrained_after(self) -> list[int]:
        """The variables whose constraint runs behind the pass; NonNeg runs inside."""
        return [i for i in self.constrained if not self.compiled.stages["nonneg"][i]]

    # Hyperparameters.

    def read_hyperparameters(self) -> None:
        """Resolve the hyperparameters of each group; note the scheduled ones."""
        rule, numbers = self.rule, self.state.numbers
        self.scheduled: list[tuple[Any, Any, Any]] = []
        self.own: Any = self._resolved(rule._parameters, "")
        owns = [group._own for group in self.state.groups]
        self.hyper = [self._resolved({**rule._parameters, **owns[k]}, kind) for k, kind in self.cohorts.pairs]
        self.taken = self.cohorts.formulas(self.formulas, self.hyper)
        self.guard = self.own.nonfinite != "ignore"
        self.changing = any(p.name not in RATES for _, p, _ in self.scheduled)
        decays = rule.overrides("decay_rate") or any(hyper.weight_decay for hyper in self.hyper)
        keeps_numbers = bool(rule.initial_numbers() or rule.initial_numbers_per_variable())
        self.decay_varies = decays and bool(self.scheduled or rule.initial_numbers())
        self.unbegun = [i for i, begun in enumerate(numbers.get("begun", ())) if not begun]
        kept = self.guard and keeps_numbers  # which taking the scalars may change
        special = self.measuring or self.decay_varies or by_norm(self.own) or self.own.use_ema or self.unbegun
        self.plain = not (special or self.staged or self.constrained or kept)
        self.compiled.stages["clip"] = self.compiled.stages["size"] = 1
        if not self.changing:
            self.set_conditions()
        self.compiled.stages["decay"] = 0  # until the schedules are known, which the step needs
        if not self.scheduled:
            self.set_decay()
        self.stale = False

    def _resolved(self, values: dict[str, Any], kind: str) -> Any:
        resolved = Resolved(values | {"slots": tuple(self.rule.slots), "kind": kind})
        for name, parameter in type(self.rule).parameters.items():
            if parameter.scheduled and callable(values[name]):
                self.scheduled.append((resolved, parameter, values[name]))
        return resolved

    def set_conditions(self) -> None:
        """Set how gradients are conditioned."""
        unscale = self.rule.gradient_sign() / (self.own.loss_scale_factor or 1)
        if self.accumulation:
            self.accumulation.plan.stages["scale"] = unscale
        self.compiled.stages["scale"] = 1 / self.accumulation.steps if self.accumulation else unscale
        self.compiled.stages["limit"] = limit_of_values(self.own)
        self.compiled.stages["l2"] = self.l2 + self._of_variables(self.rule.l2_rate)

    def steps(self) -> Array:
        """Return what part of its direction each variable takes."""
        parts = [one.step(hyper) if one.step else 1.0 for one, hyper in zip(self.passes, self.hyper, strict=True)]
        of_variables: Array = np.array(parts)[self.group_of]
        return of_variables

    def set_decay(self) -> None:
        """Set how weights decay."""
        self.compiled.stages["decay"] = self._of_variables(self.rule.decay_rate)

    def _of_variables(self, rate: Any) -> Array:
        rates: Array = np.array([rate(h) for h in self.hyper] or [0.0])[self.group_of] * self.decaying
        return rates

    # What must be put back.

    @functools.cached_property
    def room(self) -> tuple[list[Array], list[Array]]:
        """What a step could leave half-done (a run is whole or nothing), and room for copies of it."""
        state, accumulation = self.state, self.accumulation
        places = [self.compiled.stages, *state.numbers.values()]
        if self.fragile:
            of_slots = [v for of_slot in state.slots.values() for v in of_slot if v is not None]
            places += [v.value for v in [*state.variables, *of_slots]]
        if accumulation:
            places += [accumulation.plan.stages] + ([] if self.fragile else accumulation.sums)
        return places, [np.empty_like(place) for place in places]


def _numbered(one: Pass) -> list[tuple[Any, ...]]:
    """Return the sums of a pass with numbers in place of the names of slots."""
    slots = [*one.slots]
    return [tuple(slots.index(of) if of in slots else of for of in product) for product in one.sums]


def projected(rule: Rule, variable: Place) -> Any:
    """Return what a variable's constraint makes of it."""
    values = np.asarray(variable.constraint(variable.value))  # type: ignore[misc]
    if values.shape != variable.shape or values.dtype.kind not in "fiub":
        raise ValueError(
            f"{rule._owner}: constraint of {variable!r} must return real numbers of shape "
            f"{variable.shape}, got {values.dtype} of shape {values.shape}"
        )
    return values
