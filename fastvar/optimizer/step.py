"""Run a step: the plain one, which is a single run of compiled code, and all others."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvar import kernels
from fastvar.kernels.atomic import Atomic
from fastvar.kernels.numpy_plan import spoilt
from fastvar.masters import exact, writes
from fastvar.optimizer.clipping import by_norm, clip_units, coefficients
from fastvar.optimizer.passes import Measured
from fastvar.optimizer.planning import Found, StepPlan, projected
from fastvar.optimizer.slots import beginnings


class Refused(Exception):
    """`nonfinite` refuses a step. It has the numbers of bad variables, and whether their gradients are bad."""


def step(plan: StepPlan, given: list[Any], zero: bool) -> None:
    """Check everything, and then update. With `zero`, zero the gradients.

    A plain step is one run of compiled code, which updates and counts, so no signal interrupts it. This is the hot
    path of small models.
    """
    grads = _bound(plan, given, zero)
    if not plan.plain or (zero and plan.frozen):
        _whole_step(plan, given, grads, zero)
        return
    t, scalars = plan.count[0] + 1, []
    for formula, hyper in plan.taken:
        scalars.append(formula(hyper, t))
    if plan.compiled.rounds:
        plan.set_seeds(t)
    if found := plan.compiled.run(scalars, plan.workers, plan.count, plan.commits, plan.guard):
        _refuse(plan, found, _zeros(plan, grads) if zero else [])


def _bound(plan: StepPlan, grads: list[Any], zero: bool) -> list[Any]:
    """Bind the gradients to the plan, which checks them. Return them without those of frozen variables."""
    if plan.frozen and len(grads) == len(plan.group_of):
        grads = [None if i in plan.frozen else g for i, g in enumerate(grads)]
    if plan.scheduled:
        _follow_schedules(plan)
    if (bound := plan.compiled.bind(grads, zero)) < plan.least:
        if not bound and not plan.frozen:
            raise ValueError(f"{plan.rule._owner}: no variable has a gradient")
        if plan.cohorts.counting and not plan.accumulation:
            plan.set_present([g is not None for g in grads])
    return grads


def _whole_step(plan: StepPlan, given: list[Any], grads: list[Any], zero: bool) -> None:
    """Run a step of several parts. If one fails, restore everything that they wrote.

    The state that an interrupt could leave half-done is copied first. The last part, which is uninterrupted,
    counts the step. An error after that does not undo the step.
    """
    calls, workers = plan.count[0], plan.workers
    before: list[tuple[Any, Any]] = []
    if plan.staged or plan.guard or plan.measuring or by_norm(plan.own):
        places, copies = plan.backup
        kernels.copy(copies, places, workers)
        before = [*zip(places, copies, strict=True), (plan.count, [calls])]
    if plan.cohorts.counting and plan.accumulation:
        plan.commits = None
        if plan.accumulation.updates(calls):
            plan.set_present(_present(plan, grads, calls))
    scalars = [formula(hyper, _updates(plan, calls) + 1) for formula, hyper in plan.taken]
    begun = beginnings(plan.rule, plan.state, plan.unbegun, grads)
    before += [(place, place.copy()) for place, _ in begun]
    zeros = _zeros(plan, given) if zero else []  # also those of frozen variables
    after = [plan.state.variables[i]._zeroing(given[i]) for i in plan.frozen if given[i] is not None and zero]
    if zero and plan.staged:
        after = zeros
        plan.compiled.bind(grads)
    after += plan.commits or []
    found: Found = []
    try:
        with Atomic(before, after, None if plan.fragile else plan.count):
            _update(plan, grads, scalars, begun, workers)
    except Refused as refused:
        (found,) = refused.args
    if found:
        _refuse(plan, found, zeros)


def _update(
    plan: StepPlan, grads: list[Any], scalars: list[Any], begun: list[tuple[Any, Any]], workers: int
) -> None:
    """Run the parts of a step. Any of them may fail."""
    calls, accumulation = plan.count[0], plan.accumulation
    present = _present(plan, grads, calls)
    for place, value in begun:
        place[...] = value
        plan.stale = True  # the next step checks again which have not begun
    if accumulation:
        _accumulate(plan, grads, present, calls, workers)
    if plan.decay_varies:
        plan.set_decay()
    if by_norm(plan.own):
        plan.compiled.stages["clip"] = coefficients(plan.compiled, plan.own, plan.state.variables, workers)
    if plan.own.use_ema:
        _set_average(plan, _updates(plan, calls))
    commits = None
    if plan.measuring and any(present):
        scalars, commits = _measure(plan, present, scalars, _updates(plan, calls) + 1, workers)
    if plan.compiled.rounds:
        plan.set_seeds(_updates(plan, calls) + 1)
    _run(plan, plan.compiled, present, scalars, workers, plan.count, commits)
    if plan.constrained and (found := _constrain(plan, grads, present, calls)):
        raise Refused(found)


def _updates(plan: StepPlan, calls: int) -> int:
    """Return the number of updates in a number of calls."""
    return calls // plan.accumulation.steps if plan.accumulation else calls


def _present(plan: StepPlan, grads: list[Any], calls: int) -> list[bool]:
    """Return which variables this call updates. With accumulation: those with a gradient since the last update."""
    if plan.accumulation is None:
        return [g is not None for g in grads]
    if not plan.accumulation.updates(calls):
        return [False] * len(grads)
    pairs = zip(grads, plan.state.numbers["accumulated"], strict=True)
    return [(g is not None or bool(before)) and i not in plan.frozen for i, (g, before) in enumerate(pairs)]


def _zeros(plan: StepPlan, grads: list[Any]) -> list[tuple[Any, Any]]:
    return [v._zeroing(g) for v, g in zip(plan.state.variables, grads, strict=True) if g is not None]


# Before the update.


def _follow_schedules(plan: StepPlan) -> None:
    for resolved, parameter, schedule in plan.scheduled:
        setattr(resolved, parameter.name, plan.rule._evaluate(parameter, schedule))
    if plan.changing:
        plan.set_conditions()


def _accumulate(plan: StepPlan, grads: list[Any], present: list[bool], calls: int, workers: int) -> None:
    """Add up the gradients. Bind the sums if this call updates, and else nothing."""
    accumulation: Any = plan.accumulation
    accumulated = plan.state.numbers["accumulated"]
    accumulation.plan.bind(grads)
    _run(plan, accumulation.plan, present, accumulation.scalars, workers)
    plan.compiled.bind([a if there else None for a, there in zip(accumulation.sums, present, strict=True)], True)
    if accumulation.updates(calls):
        accumulated[...] = 0
        for i in plan.frozen:
            accumulation.sums[i][...] = 0
    else:
        accumulated[[g is not None for g in grads]] = 1


def _set_average(plan: StepPlan, updates: int) -> None:
    every, stages = plan.own.ema_overwrite_frequency, plan.compiled.stages
    stages["average"] = plan.own.ema_momentum if updates else 0  # first: a copy
    due = every is not None and (updates + 1) % every == 0
    stages["overwrite"] = [v.trainable for v in plan.state.variables] if due else 0


def _measure(
    plan: StepPlan, present: list[bool], scalars: list[Any], t: int, workers: int
) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """Compute the sums that the rule needs, which changes nothing. Return its scalars and commits."""
    compiled, rule, measuring = plan.compiled, plan.rule, plan.measuring
    compiled.stages["size"] = 1
    compiled.stages["step"] = plan.steps()
    there = np.ones(len(present), bool) if all(present) else np.array(present)  # the first is ten times as fast
    missed = plan.state.numbers.get("missed", 0.0)
    step = Measured(compiled, measuring, plan.state.variables, plan.hyper, plan.group_of, there, t, missed)
    with np.errstate(all="ignore"):
        if plan.own.adaptive_clipnorm is not None:
            clip_units(compiled, plan.own.adaptive_clipnorm, workers)
        if any(one.matrices for one in plan.passes):
            step.sum_matrices(workers)
            rule.scale_matrices(step)
        if any(one.sums for one in plan.passes):
            step.sum(lambda scale: compiled.sums(scalars, workers, scale))
            rule.adjust(step)
            scalars = [formula(hyper, t) for formula, hyper in plan.taken]
    compiled.stages["size"] = np.minimum(step.sizes, measuring.largest)  # type: ignore[union-attr]  # NaN passes
    return scalars, step.commits


# The update.


def _run(
    plan: StepPlan,
    one: Any,
    present: list[bool],
    scalars: Any,
    workers: int,
    count: Any = None,
    commits: Any = None,
) -> None:
    """Run a compiled plan. Raise `Refused` if `nonfinite` does not allow the result."""
    if plan.guard and any(spoilt(place, value) for place, value in commits or ()):
        raise Refused(plan.agree([(i, False) for i, there in enumerate(present) if there]))
    if found := one.run(scalars, workers, count, commits, plan.guard):
        raise Refused(found)


# After the update.


def _constrain(plan: StepPlan, grads: list[Any], present: list[bool], calls: int) -> Found:
    """Project the variables that had a gradient. Those inside the pass have already run in an update.

    Return those that `nonfinite` does not allow.
    """
    found: Found = []
    updates = plan.accumulation is None or plan.accumulation.updates(calls)
    concerned = present if updates else [g is not None for g in grads]
    for i in plan.constrained_after if updates else plan.constrained:
        if concerned[i]:  # as in Keras, which applies constraints at every call
            variable = plan.state.variables[i]
            values = projected(plan.rule, variable)
            if plan.guard and spoilt(values, exact(variable.memory)):
                found.append((i, False))
                continue
            for target, part in writes(variable.memory, values):
                target[...] = part
    return plan.agree(found) if plan.guard else found


def _refuse(plan: StepPlan, found: Found, zeros: list[Any]) -> None:
    """Raise an error that names the bad variables; or zero the gradients, and count the step as skipped."""
    if plan.own.nonfinite == "raise":
        raise not_finite(plan.rule._owner, plan.labels, found)
    skipped = plan.state.numbers["skipped"]
    with Atomic([], [*zeros, (skipped, np.asarray(skipped + 1))]):
        pass


def not_finite(owner: str, labels: list[str], found: Found) -> ValueError:
    """Return the error that names the bad variables of a guarded run."""
    names = [labels[i] for i, by_gradient in found if by_gradient]
    what = "gradient of" if names else "what the step makes of"
    names = names or [labels[i] for i, _ in found]
    return ValueError(f"{owner}: {what} {', '.join(names)} must be finite")
