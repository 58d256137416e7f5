"""Rules that Keras lacks mean what they mean in PyTorch 2.13 or optax 0.2.8: compare 20 steps with theirs.

=====================  ========  ======================================================================
class                  oracle    where it differs from the oracle
=====================  ========  ======================================================================
RAdam                  torch     -
ASGD                   torch     a new learning rate takes effect at once; the average is `(1-mu) a + mu w`
Rprop                  torch     NaN does not change the step size
AdaBelief, AdEMAMix    optax     -
Yogi, Signum           optax     -
Adan                   optax     -
Adopt                  optax     `clip_power` in place of a function of the step
Lars                   optax     weight decay inside the ratio is a regularizer
Prodigy                optax     weight decay without the bias correction
all others             Keras     see test_keras.py
=====================  ========  ======================================================================

Also compared: rules with another meaning in PyTorch than in Keras, as other scalars of the same compiled rule.

20 contracting steps round some 120 operations by half a unit in the last place, and most errors cancel out. The
largest difference seen was 16 units; weights must agree to 50 units in the last place of the largest.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar import kernels
from tests.support.cases import CASES, Case
from tests.support.oracles import OPTAX, made_by_optax, torch_options

SHAPES = [(7, 5), (5,), (), (3, 2, 4), (1000,)]
STEPS = 20
DTYPES = ["float32", "float64"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def start(dtype: str) -> list[Any]:
    rng = np.random.default_rng(7)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def gradients(dtype: str) -> list[list[Any]]:
    rng = np.random.default_rng(8)
    return [[np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES] for _ in range(STEPS)]


def assert_close(actual: list[Any], expected: list[Any], dtype: str) -> None:
    before = start(dtype)
    for a, e, w in zip(actual, expected, before, strict=True):
        assert a.dtype == e.dtype == dtype
        assert (a != w).any()
        np.testing.assert_allclose(a, e, rtol=0, atol=50 * np.finfo(dtype).eps * max(np.abs(e).max(), 1))


def oracle_cases(oracle: str) -> Any:
    cases = [case for case in CASES if case.oracle == oracle]
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def test_every_case_has_an_oracle() -> None:
    assert {case.oracle for case in CASES} <= {"keras", "torch", "optax", "none"}


def run_fastvar(case: Case, dtype: str) -> tuple[fv.Optimizer, list[Any]]:
    variables = [fv.Variable(w) for w in start(dtype)]
    optimizer = case.make()
    for grads in gradients(dtype):
        optimizer.apply(grads, variables)
    return optimizer, [v.numpy() for v in variables]


# PyTorch.


def follow_torch(make: Callable[[Any, Any], Any], dtype: str, rates: list[float] | None = None) -> tuple[Any, Any]:
    """Run the optimizer `make(torch, parameters)` with the learning rates `rates`; return it and the weights."""
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(getattr(torch, dtype))  # the dtype of some of its scalars
    try:
        return _followed(torch, make, dtype, rates)
    finally:
        torch.set_default_dtype(torch.float32)


def _followed(torch: Any, make: Any, dtype: str, rates: list[float] | None) -> tuple[Any, Any]:
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in start(dtype)]
    optimizer = make(torch, parameters)
    for t, grads in enumerate(gradients(dtype)):
        for p, g in zip(parameters, grads, strict=True):
            p.grad = torch.tensor(g)
        if rates:
            optimizer.param_groups[0]["lr"] = rates[t]
        optimizer.step()
    return optimizer, [p.detach().numpy() for p in parameters]


@oracle_cases("torch")
@every_dtype
def test_follows_torch(case: Case, dtype: str) -> None:
    optimizer, actual = run_fastvar(case, dtype)
    theirs, expected = follow_torch(
        lambda torch, parameters: getattr(torch.optim, case.optimizer)(parameters, **torch_options(case)), dtype
    )
    assert_close(actual, expected, dtype)
    slots = {"ASGD": {"ax": "ax"}, "Rprop": {"previous_gradient": "prev", "step_size": "step_size"}}
    for ours, name in slots.get(case.optimizer, {"momentum": "exp_avg", "velocity": "exp_avg_sq"}).items():
        expected = [state[name].numpy() for state in theirs.state.values()]
        for v, e in zip(optimizer._state.variables, expected, strict=True):
            np.testing.assert_allclose(
                optimizer.slot(v, ours).value, e, rtol=0, atol=1e-5 if dtype == "float32" else 1e-14
            )


@pytest.mark.parametrize("name", ["RAdam", "ASGD", "Rprop"])
def test_defaults_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    defaults = getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(1))]).defaults
    ours = torch_options(Case("", name, ""))
    for option in ours.keys() - {"foreach", "decoupled_weight_decay"}:
        assert ours[option] == defaults[option], option


# optax.


def follow_optax(make: Callable[[Any], Any], dtype: str) -> list[Any]:
    import jax
    import optax

    with jax.enable_x64(dtype == "float64"):
        transformation = make(optax)
        weights = [jax.numpy.asarray(w) for w in start(dtype)]
        state = transformation.init(weights)
        for grads in gradients(dtype):
            updates, state = transformation.update([jax.numpy.asarray(g) for g in grads], state, weights)
            weights = optax.apply_updates(weights, updates)
        return [np.asarray(w) for w in weights]


@oracle_cases("optax")
@every_dtype
def test_follows_optax(case: Case, dtype: str) -> None:
    expected = follow_optax(lambda optax: made_by_optax(optax, case), dtype)
    assert_close(run_fastvar(case, dtype)[1], expected, dtype)


@every_dtype
def test_ademamix_follows_the_schedules_of_optax(dtype: str) -> None:
    def alpha(step: Any) -> Any:
        return 0.25 * step

    def beta_3(step: Any) -> Any:
        return 0.5 + 0.0625 * step / (1 + 0.125 * step)

    expected = follow_optax(lambda optax: optax.contrib.ademamix(0.03125, alpha=alpha, b3=beta_3), dtype)
    case = Case("", "AdEMAMix", "ademamix", {"learning_rate": 0.03125, "alpha": alpha, "beta_3": beta_3})
    assert_close(run_fastvar(case, dtype)[1], expected, dtype)


def test_lars_with_the_decay_of_optax() -> None:
    expected = follow_optax(lambda optax: optax.lars(0.5, weight_decay=0.25, trust_coefficient=0.25), "float64")
    variables = [fv.Variable(w, regularizer=fv.regularizers.L2(0.125)) for w in start("float64")]
    optimizer = fv.optimizers.Lars(0.5, trust_coefficient=0.25)
    for grads in gradients("float64"):
        optimizer.apply(grads, variables)
    assert_close([v.numpy() for v in variables], expected, "float64")


def test_prodigy_finds_the_distance_that_optax_finds() -> None:
    import jax
    import optax

    first, curvature = np.linspace(-3.0, 5.0, 40), np.linspace(0.25, 4.0, 40)
    w, optimizer = fv.Variable(first), fv.optimizers.Prodigy()
    with jax.enable_x64(True):
        transformation, theirs = optax.contrib.prodigy(), jax.numpy.asarray(first)
        state = transformation.init(theirs)
        for _ in range(120):
            optimizer.apply([curvature * w.value], [w])
            updates, state = transformation.update(curvature * theirs, state, theirs)
            theirs = optax.apply_updates(theirs, updates)
        assert optimizer.distance == pytest.approx(float(state.estim_lr), rel=1e-9)
        assert optimizer.distance > 1e4 * optimizer.initial_distance
        np.testing.assert_allclose(w, np.asarray(theirs), rtol=0, atol=1e-7)


CLIPPED = {(): 1, (5,): 1, (1, 5, 1): 1, (7, 5): 5, (3, 2, 4): 8, (2, 3, 4, 5): 5}  # shapes, and units


@every_dtype
@pytest.mark.parametrize("clipping", [0.01, 0.5, 100.0])
def test_adaptive_clipping_is_that_of_optax(dtype: str, clipping: float) -> None:
    import jax
    import optax

    rng = np.random.default_rng(9)
    weights = [np.asarray(rng.standard_normal(s) * rng.choice([0, 1e-4, 1.0]), dtype) for s in CLIPPED]
    grads = [np.asarray(rng.standard_normal(s), dtype) for s in CLIPPED]
    variables = [fv.Variable(w) for w in weights]
    fv.optimizers.SGD(1.0, adaptive_clipnorm=clipping).apply(grads, variables)
    with jax.enable_x64(dtype == "float64"):
        clip = optax.adaptive_grad_clip(clipping)
        expected, _ = clip.update(
            [*map(jax.numpy.asarray, grads)], clip.init(weights), [*map(jax.numpy.asarray, weights)]
        )
        for v, w, e in zip(variables, weights, expected, strict=True):
            np.testing.assert_allclose(w - v.value, np.asarray(e), rtol=0, atol=8 * np.finfo(dtype).eps * 4)


@pytest.mark.parametrize("name", OPTAX)
def test_defaults_are_those_of_optax(name: str) -> None:
    import inspect

    import optax

    function, names = OPTAX[name]
    theirs = inspect.signature(getattr(optax, function, None) or getattr(optax.contrib, function)).parameters
    ours = getattr(fv.optimizers, name)().get_config()
    for option, their_name in names.items():
        assert (ours[option] or 0.0) == theirs[their_name or option].default, option


# Rules with another meaning in PyTorch than in Keras, as other scalars of the same compiled rule.


def torch_sgd(lr: float, t: int, momentum: float, dampening: float = 0.0, nesterov: bool = False) -> Any:
    take = 1.0 if t == 1 else 1 - dampening  # the first gradient is not damped
    return (momentum, take, -lr * momentum, -lr) if nesterov else (momentum, take, -lr, 0.0)


def torch_adam(lr: float, t: int, beta_1: float, beta_2: float, eps: float) -> Any:
    return 1 - beta_1, beta_2, 1 - beta_2, lr / (1 - beta_1**t), 0.0, 1 / sqrt(1 - beta_2**t), eps


def torch_nadam(lr: float, t: int, beta_1: float, beta_2: float, eps: float, momentum_decay: float) -> Any:
    mu = [beta_1 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in range(1, t + 2)]
    by_m, by_g = lr * mu[t] / (1 - np.prod(mu)), lr * (1 - mu[t - 1]) / (1 - np.prod(mu[:t]))
    return 1 - beta_1, beta_2, 1 - beta_2, by_m, by_g, 1 / sqrt(1 - beta_2**t), eps


def torch_adamax(lr: float, t: int, beta_1: float, beta_2: float, eps: float) -> Any:
    return 1 - beta_1, beta_2, lr / (1 - beta_1**t), eps, 0.0


def torch_rmsprop(lr: float, t: int, alpha: float, eps: float, momentum: float | None = None) -> Any:
    plain = alpha, 1 - alpha, lr if momentum is None else 1.0, 0.0, eps
    return plain if momentum is None else (*plain, momentum, lr)


def torch_adagrad(lr: float, t: int, lr_decay: float, eps: float) -> Any:
    return 1.0, 1.0, lr / (1 + (t - 1) * lr_decay), 0.0, eps


def torch_adadelta(lr: float, t: int, rho: float, eps: float) -> Any:
    return rho, 1 - rho, lr, eps


BETAS = {"beta_1": 0.75, "beta_2": 0.875, "eps": 1e-3}
MEANT = {  # rule, scalars, their options; torch.optim's class and options; initial value of the first slot
    "sgd": ("momentum", torch_sgd, {"momentum": 0.75}, "SGD", {"momentum": 0.75}),
    "sgd-dampening": (
        "momentum",
        torch_sgd,
        {"momentum": 0.75, "dampening": 0.25},
        "SGD",
        {"momentum": 0.75, "dampening": 0.25},
    ),
    "sgd-nesterov": (
        "momentum",
        torch_sgd,
        {"momentum": 0.75, "nesterov": True},
        "SGD",
        {"momentum": 0.75, "nesterov": True},
    ),
    "adam": ("adam", torch_adam, BETAS, "Adam", {"betas": (0.75, 0.875), "eps": 1e-3}),
    "amsgrad": ("amsgrad", torch_adam, BETAS, "Adam", {"betas": (0.75, 0.875), "eps": 1e-3, "amsgrad": True}),
    "nadam": (
        "adam",
        torch_nadam,
        {**BETAS, "momentum_decay": 0.25},
        "NAdam",
        {"betas": (0.75, 0.875), "eps": 1e-3, "momentum_decay": 0.25},
    ),
    "adamax": ("adamax", torch_adamax, BETAS, "Adamax", {"betas": (0.75, 0.875), "eps": 1e-3}),
    "rmsprop": ("rmsprop", torch_rmsprop, {"alpha": 0.75, "eps": 0.125}, "RMSprop", {"alpha": 0.75, "eps": 0.125}),
    "rmsprop-momentum": (
        "rmsprop_momentum",
        torch_rmsprop,
        {"alpha": 0.75, "eps": 0.125, "momentum": 0.5},
        "RMSprop",
        {"alpha": 0.75, "eps": 0.125, "momentum": 0.5},
    ),
    "rmsprop-centered": (
        "rmsprop_centered",
        torch_rmsprop,
        {"alpha": 0.75, "eps": 0.125, "momentum": 0.0},
        "RMSprop",
        {"alpha": 0.75, "eps": 0.125, "centered": True},
    ),
    "rmsprop-centered-momentum": (
        "rmsprop_centered",
        torch_rmsprop,
        {"alpha": 0.75, "eps": 0.125, "momentum": 0.5},
        "RMSprop",
        {"alpha": 0.75, "eps": 0.125, "momentum": 0.5, "centered": True},
    ),
    "adagrad": (
        "rmsprop",
        torch_adagrad,
        {"lr_decay": 0.125, "eps": 1e-3},
        "Adagrad",
        {"lr_decay": 0.125, "eps": 1e-3},
    ),
    "adadelta": ("adadelta", torch_adadelta, {"rho": 0.75, "eps": 1e-3}, "Adadelta", {"rho": 0.75, "eps": 1e-3}),
}


@pytest.mark.parametrize("form", MEANT)
@every_dtype
def test_rules_can_mean_what_torch_means(form: str, dtype: str) -> None:
    rule, scalars, options, name, their_options = MEANT[form]
    rates = [0.0625 if t % 8 < 5 else 0.015625 for t in range(STEPS)]  # its position matters when it changes
    weights = start(dtype)
    slots = [[np.zeros_like(w) for _ in range(len(kernels.RULES[rule].slots))] for w in weights]
    names = [str(i) for i in range(len(weights))]
    plan = kernels.Plan("test", kernels.RULES[rule], names, weights, slots, [0] * len(weights))
    for t, grads in enumerate(gradients(dtype)):
        plan.bind(grads)
        plan.run([scalars(rates[t], t + 1, **options)])
    _, expected = follow_torch(
        lambda torch, parameters: getattr(torch.optim, name)(parameters, 1.0, foreach=False, **their_options),
        dtype,
        rates,
    )
    assert_close(weights, expected, dtype)
