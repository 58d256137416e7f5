"""Every optimizer solves three problems to the tolerances below, with the rates and steps of `JOBS` (cases.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import JOBS, Job
from tests.support.examples import mlp

QUADRATIC = 1e-8  # the largest final loss
ROSENBROCK = 1e-5  # the largest final loss; the first is 24.2
DIGITS = 0.95  # the least accuracy on 360 held-out digits; 0.1 by chance
BATCH = 64

Evaluate = Callable[[], tuple[float, list[Any]]]  # loss and gradients
every_job = pytest.mark.parametrize("job", JOBS, ids=lambda job: job.optimizer)


def train(optimizer: fv.Optimizer, variables: list[fv.Variable], evaluate: Evaluate, steps: int) -> None:
    def scaled() -> tuple[float, list[Any]]:
        loss, gradients = evaluate()
        scale = optimizer.scale_loss(1.0)
        return loss * scale, [g * scale for g in gradients] if scale != 1 else gradients

    optimizer.build(variables)
    for _ in range(steps):
        optimizer.minimize(scaled)


def minimized_quadratic(job: Job, dtype: str, **changed: float) -> float:
    """Return the final loss on a quadratic whose curvatures span three orders of magnitude."""
    rng = np.random.default_rng(0)
    curvatures = [np.logspace(-3, 0, 30).reshape(6, 5), np.logspace(0, -3, 10)]
    minima = [rng.uniform(0.5, 1.5, c.shape) for c in curvatures]
    variables = [fv.Variable(np.full(c.shape, 3.0), dtype=dtype) for c in curvatures]

    def evaluate() -> tuple[float, list[Any]]:
        errors = [v.value - m for v, m in zip(variables, minima, strict=True)]
        gradients = [c * e for c, e in zip(curvatures, errors, strict=True)]
        return sum(float(np.vdot(g, e)) for g, e in zip(gradients, errors, strict=True)) / 2, gradients

    rate, steps = job.quadratic
    at_first = evaluate()[0]
    train(job.make(changed.get("rate", rate), steps), variables, evaluate, steps)
    return evaluate()[0] / at_first


def minimized_rosenbrock(job: Job, **changed: float) -> float:
    """Return the final loss in Rosenbrock's valley."""
    w = fv.Variable([-1.2, 1.0])

    def evaluate() -> tuple[float, list[Any]]:
        x, y = w.value
        rise = y - x * x
        return (1 - x) ** 2 + 100 * rise**2, [np.array([-2 * (1 - x) - 400 * x * rise, 200 * rise])]

    rate, steps = job.rosenbrock
    train(job.make(changed.get("rate", rate), steps), [w], evaluate, steps)
    return float(evaluate()[0])


def learnt_digits(job: Job, **changed: float) -> float:
    """Return the accuracy of a network of 64, 32 and 10 units on held-out digits."""
    rng = np.random.default_rng(0)
    (x, y), held_out = mlp().digits(rng)
    net = mlp().MLP([64, 32], 10, rng)

    def batches() -> Iterator[Any]:
        while True:
            yield from [slice(None)] if job.whole else mlp().batches(len(y), BATCH, rng)

    rows = batches()

    def evaluate() -> tuple[float, list[Any]]:
        chosen = next(rows)
        loss = net.loss(x[chosen], y[chosen])
        return loss, [v.grad for v in net.variables]

    rate, steps = job.digits
    train(job.make(changed.get("rate", rate), steps), net.variables, evaluate, steps)
    return float(net.accuracy(*held_out))


def test_every_optimizer_has_a_job() -> None:
    assert {job.optimizer for job in JOBS} == set(fv.optimizers.__all__)


@every_job
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_badly_scaled_quadratic(job: Job, dtype: str) -> None:
    assert minimized_quadratic(job, dtype) <= QUADRATIC


@every_job
def test_rosenbrock(job: Job) -> None:
    assert minimized_rosenbrock(job) <= ROSENBROCK


@every_job
def test_digits(job: Job) -> None:
    assert learnt_digits(job) >= DIGITS


def test_without_a_learning_rate_nothing_is_learnt() -> None:
    (job,) = (job for job in JOBS if job.optimizer == "Adam")
    assert minimized_quadratic(job, "float64", rate=0.0) == 1
    assert minimized_rosenbrock(job, rate=0.0) == pytest.approx(24.2)
    assert learnt_digits(job, rate=0.0) < 0.5


def test_runs_repeat_to_the_last_bit() -> None:
    for job in JOBS[:2]:
        assert minimized_quadratic(job, "float32") == minimized_quadratic(job, "float32")
        assert minimized_rosenbrock(job) == minimized_rosenbrock(job)
