"""The parts of a step that stay the same until the optimizer, its groups or its variables change."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastvar import buffers, kernels, masters, threads
from fastvar.buffers import Array
from fastvar.constraints import BUILTIN, number_bounds
from fastvar.kernels import crew, reference, rounding
from fastvar.optimizer.clipping import by_norm, limit_of_values, units
from fastvar.optimizer.cohorts import Cohorts, Scalars
from fastvar.optimizer.passes import Pass
from fastvar.optimizer.quantized import arrays_of, memory_of
from fastvar.optimizer.rule import Rule
from fastvar.optimizer.state import State
from fastvar.place import Place, Structure, label

PARALLEL = crew.parallel  # with fewer elements, a step does not ask for the number of threads
Found = list[tuple[int, bool]]  # the numbers of bad variables, and whether their gradients are bad
RATES = ("learning_rate", "lr")  # these may change without a change of how gradients are conditioned


def alone(found: Found) -> Found:
    """Return what a process finds, where no other must agree."""
    return found


class Resolved:
    """The hyperparameters of a group as plain attributes, four times as fast to read as in a namespace."""

    def __init__(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)


class Accumulation:
    """The sums of accumulated gradients, computed as gradient descent with a learning rate of -1."""

    plan: Any
    scalars: ClassVar[tuple[tuple[float, ...], ...]] = ((-1.0,),)

    def __init__(self, rule: Rule, state: State, labels: list[str]) -> None:
        self.steps: int = rule.gradient_accumulation_steps or 1
        slots: Any = state.slots["gradient_accumulator"]
        self.sums: list[Array] = [v.value for v in slots]
        none, group = [()] * len(labels), [0] * len(labels)
        self.plan = kernels.Plan(rule._owner, kernels.RULES["gradient_descent"], labels, self.sums, none, group)

    def updates(self, calls: int) -> bool:
        """Return whether the next call updates, after this many calls."""
        return (calls + 1) % self.steps == 0


class Measuring:
    """Memory for the sums before an update.

    Attributes
    ----------
    directions : list of (ndarray or None)
        Kept directions, which the rule may replace.
    largest : ndarray
        The largest number of the dtype in which each variable is computed.
    wide : ndarray of bool or None
        Which variables are float64, whose squares can overflow in double precision; None if there are none.
    """

    directions: list[Array | None]
    largest: Array
    wide: Array | None

    def __init__(self, variables: list[Place], passes: list[Pass]) -> None:
        self.directions = [
            buffers.empty(v.shape, buffers.arithmetic(v.dtype)) if one.keeps_directions else None
            for v, one in zip(variables, passes, strict=True)
        ]
        self.largest = np.array([np.finfo(buffers.arithmetic(v.dtype)).max for v in variables])
        wide = np.array([v.dtype == np.float64 for v in variables])
        self.wide = wide if wide.any() else None


class StepPlan:
    """Everything about a step that stays the same until something changes.

    Without special options it has at most 29 attributes: CPython reads those of larger objects more slowly.

    Attributes
    ----------
    version : object
        The `Structure.version` at which it was made.
    stale : bool
        Whether hyperparameters have changed since they were read.
    plain : bool
        Whether the step is a single run, with nothing to copy before, to fill in or to undo.
    fragile : bool
        Whether users' code runs during the updates, so that everything must be copied before.
    compiled : Plan
        What runs: the plan of the kernels or, of a rule in NumPy, its twin.
    agree : callable
        Returns what all processes that share the step have found to be bad, given what this one has.
    passes, formulas : list
        How variables are updated, and what gives the scalars of their rule, by group.
    measuring : Measuring or None
        What it takes to sum something before the update, if that is to be done.
    least : int
        With fewer gradients, a step checks which are missing.
    commits : list of (ndarray, ndarray) or None
        State of the cohorts, and its values after the update.
    scheduled : list
        For each schedule: the hyperparameters of a group, the parameter, the schedule.
    """

    rule: Rule
    state: State
    count: list[int]
    cohorts: Cohorts
    passes: list[Pass]
    formulas: list[Scalars]
    hyper: list[Any]
    taken: list[tuple[Scalars, Any]]
    measuring: Measuring | None
    least: int
    fragile: bool
    stale: bool
    guard: bool
    l2: Array
    decaying: Array

    agree: Callable[[Found], Found] = staticmethod(alone)

    def __init__(self, rule: Rule, state: State) -> None:
        self.version: object = Structure.version
        self.rule, self.state, self.count = rule, state, state.count
        variables = state.variables
        self.labels: list[str] = [label(v, i) for i, v in enumerate(variables)]
        self.frozen: set[int] = {i for i, v in enumerate(variables) if not v.trainable}
        self.parallel: bool = sum(v.size for v in variables) >= PARALLEL
        self.accumulation: Accumulation | None = None
        if rule.gradient_accumulation_steps:
            self.accumulation = Accumulation(rule, state, self.labels)
        self.cohorts = Cohorts(rule, state)
        self.least = int(not self.frozen)  # with fewer gradients, a step checks which are missing
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
        """Whether a step has several runs. Each is uninterrupted, and gradients are zeroed last."""
        return self.fragile or self.accumulation is not None

    @property
    def workers(self) -> int:
        """The number of threads of a run."""
        return threads.get_num_threads() if self.parallel else 1

    # Plans.

    def set_present(self, present: list[bool]) -> None:
        """Make the cohorts of the variables with a gradient. The others miss the update."""
        if present != self.cohorts.present:
            self.least, self.cohorts.present = len(present) + 1, None  # until everything is done
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
            [v.memory for v in variables],
            [[memory_of(slots[name][i]) for name in one.slots] for i, one in enumerate(of_variable)],
            self.group_of,
            [v.value for v in average] or None,
            self.measuring.directions if self.measuring else None,
            sums=[_numbered(one) for one in self.passes],
            direct=[one.step is not None for one in self.passes],
            matrices=matrices,
        )
        if state.across:
            self.compiled = state.across(self.compiled)
            self.agree = self.compiled.agree
        self.fragile = isinstance(rules[0], reference.Rule)

    def _matrices(self, of_variable: list[Any]) -> list[tuple[list[Any], bool]]:
        """Return the matrices with factors: the units of adaptive clipping, and those of the rule."""
        variables = self.state.variables
        matrices: list[tuple[list[Any], bool]] = []
        if self.rule.adaptive_clipnorm is not None:
            matrices.append(([units(v.shape) for v in variables], False))
        if any(one.matrices for one in of_variable):
            pairs = zip(variables, of_variable, strict=True)
            matrices.append(([matrix_shape(v) if one.matrices else None for v, one in pairs], True))
        return matrices

    def _set_stages_of_variables(self) -> None:
        variables = self.state.variables
        penalties = [v.regularizer for v in variables]
        self.compiled.stages["l1"] = [p.l1 if p else 0 for p in penalties]
        self.l2 = np.array([2 * p.l2 if p else 0 for p in penalties])
        bounds = np.array([number_bounds(v.constraint) for v in variables])
        self.compiled.stages["low"], self.compiled.stages["high"] = bounds.T
        self.constrained: list[int] = [i for i, v in enumerate(variables) if v.constraint]
        for i in self.constrained:
            if type(variables[i].constraint) in BUILTIN:  # a missing axis or a wrong shape is an error here
                try:
                    projected(self.rule, variables[i])
                except ValueError as error:
                    raise ValueError(f"{self.rule._owner}: constraint of {self.labels[i]}: {error}") from None
        by_call = bool(self.constrained) and self.accumulation is not None
        self.fragile = self.fragile or by_call or bool(self.constrained_after)
        self.decaying = np.array([self.rule.decays(v) for v in variables], float)

    @property
    def constrained_after(self) -> list[int]:
        """The variables whose constraint runs after the pass; bounds that are numbers are applied inside it."""
        stages = self.compiled.stages
        return [i for i in self.constrained if stages["low"][i] == -np.inf and stages["high"][i] == np.inf]

    # Hyperparameters.

    def read_hyperparameters(self) -> None:
        """Read the hyperparameters of each group, and list the scheduled ones."""
        try:
            self.stale = False  # first: another thread may change them meanwhile, for the next step
            self._read_hyperparameters()
        except BaseException:
            self.stale = True
            raise

    def _read_hyperparameters(self) -> None:
        rule, numbers = self.rule, self.state.numbers
        self.scheduled: list[tuple[Any, Any, Any]] = []
        self.own: Any = self._resolved(rule._parameters, "")
        owns = [group._own for group in self.state.groups]
        self.hyper = [self._resolved({**rule._parameters, **owns[k]}, kind) for k, kind in self.cohorts.pairs]
        self.taken = self.cohorts.formulas(self.formulas, self.hyper)
        self.guard = self.own.nonfinite != "ignore"
        self.changing: bool = any(p.name not in RATES for _, p, _ in self.scheduled)
        decays = rule.overrides("decay_rate") or any(hyper.weight_decay for hyper in self.hyper)
        keeps_numbers = bool(rule.initial_numbers() or rule.initial_numbers_per_variable())
        self.decay_varies: bool = decays and bool(self.scheduled or rule.initial_numbers())
        self.unbegun: list[int] = [i for i, begun in enumerate(numbers.get("begun", ())) if not begun]
        kept = self.guard and keeps_numbers  # computing the scalars may change them
        special = self.measuring or self.decay_varies or by_norm(self.own) or self.own.use_ema or self.unbegun
        self.plain: bool = not (special or self.staged or self.constrained or kept)
        self.compiled.stages["clip"] = self.compiled.stages["size"] = 1
        if not self.changing:
            self.set_conditions()
        self.compiled.stages["decay"] = 0  # until the schedules are evaluated, as the step does
        if not self.scheduled:
            self.set_decay()

    def _resolved(self, values: dict[str, Any], kind: str) -> Any:
        resolved = Resolved(values | {"slots": tuple(self.rule.slots), "kind": kind})
        for name, parameter in type(self.rule).parameters.items():
            if parameter.scheduled and callable(values[name]):
                self.scheduled.append((resolved, parameter, values[name]))
        return resolved

    def set_conditions(self) -> None:
        """Set the stages that condition gradients."""
        unscale = self.signs() / (self.own.loss_scale_factor or 1)
        if self.accumulation:
            self.accumulation.plan.stages["scale"] = unscale
        self.compiled.stages["scale"] = 1 / self.accumulation.steps if self.accumulation else unscale
        self.compiled.stages["limit"] = limit_of_values(self.own)
        self.compiled.stages["l2"] = self.l2 + self._of_variables(self.rule.l2_rate)

    def signs(self) -> Array:
        """Return the sign of the gradient of each variable: -1 where the loss is maximized."""
        signs: Array = np.array([self.rule.gradient_sign(hyper) for hyper in self.hyper] or [1.0])[self.group_of]
        return signs

    def steps(self) -> Array:
        """Return the factor of the direction of each variable."""
        parts = [one.step(hyper) if one.step else 1.0 for one, hyper in zip(self.passes, self.hyper, strict=True)]
        of_variables: Array = np.array(parts)[self.group_of]
        return of_variables

    def set_seeds(self, t: int) -> None:
        """Set what random bits depend on, for update number `t`."""
        updates = t - self.state.numbers.get("missed", np.zeros(())).astype(np.int64)
        rounding.set_seeds(self.compiled.seeds, self.own.seed, updates, np.arange(len(self.group_of)))

    def set_decay(self) -> None:
        """Set the weight decay."""
        self.compiled.stages["decay"] = self._of_variables(self.rule.decay_rate)

    def _of_variables(self, rate: Any) -> Array:
        rates: Array = np.array([rate(h) for h in self.hyper] or [0.0])[self.group_of] * self.decaying
        return rates

    # State to restore after an error.

    @functools.cached_property
    def backup(self) -> tuple[list[Array], list[Array]]:
        """The state that an interrupt could leave half-done (runs are whole), and buffers for copies."""
        state, accumulation = self.state, self.accumulation
        places = [self.compiled.stages, *state.numbers.values()]
        if self.fragile:
            of_slots = [v for of_slot in state.slots.values() for v in of_slot if v is not None]
            places += [array for v in state.variables for array in masters.arrays_of(v.memory)]
            places += [array for v in of_slots for array in arrays_of(v)]
        if accumulation:
            places += [accumulation.plan.stages] + ([] if self.fragile else accumulation.sums)
        return places, [np.empty_like(place) for place in places]


def _numbered(one: Pass) -> list[tuple[Any, ...]]:
    """Return the sums of a pass, with numbers for the names of slots."""
    slots = [*one.slots]
    return [tuple(slots.index(of) if of in slots else of for of in product) for product in one.sums]


def projected(rule: Rule, variable: Place) -> Any:
    """Return the projection of a variable by its constraint."""
    values = np.asarray(variable.constraint(masters.exact(variable.memory)))  # type: ignore[misc]
    if values.shape != variable.shape or values.dtype.kind not in "fiub":
        raise ValueError(
            f"{rule._owner}: constraint of {variable!r} must return real numbers of shape "
            f"{variable.shape}, got {values.dtype} of shape {values.shape}"
        )
    return values


def matrix_shape(variable: Place) -> tuple[int, int]:
    """Return the shape of the matrices of a variable: its last two axes, or one row if it is no matrix."""
    rows, columns = variable.shape[-2:] if variable.ndim >= 2 else (1, variable.size)
    return rows, columns
