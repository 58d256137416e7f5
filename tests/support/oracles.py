"""Optimizers of PyTorch and optax with the options of our cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.cases import Case

OPTAX = {  # the function, and its names for our options
    "AdaBelief": ("adabelief", {"beta_1": "b1", "beta_2": "b2", "epsilon": "eps", "epsilon_root": "eps_root"}),
    "Yogi": ("yogi", {"beta_1": "b1", "beta_2": "b2", "epsilon": "eps"}),
    "AdEMAMix": (
        "ademamix",
        {"beta_1": "b1", "beta_2": "b2", "beta_3": "b3", "alpha": "alpha", "epsilon": "eps", "weight_decay": None},
    ),
    "Adan": (
        "adan",
        {
            "beta_1": "b1",
            "beta_2": "b2",
            "beta_3": "b3",
            "epsilon": "eps",
            "epsilon_root": "eps_root",
            "weight_decay": None,
        },
    ),
    "Adopt": ("adopt", {"beta_1": "b1", "beta_2": "b2", "epsilon": "eps"}),
    "Signum": ("signum", {"momentum": "beta"}),
    "Lars": (
        "lars",
        {"momentum": "momentum", "nesterov": "nesterov", "trust_coefficient": None, "epsilon": "eps"},
    ),
    "Prodigy": (
        "prodigy",
        {"epsilon": "eps", "initial_distance": "estim_lr0", "distance_coefficient": "estim_lr_coef"},
    ),
}


@contextmanager
def default_dtype(dtype: str) -> Iterator[None]:
    """Make PyTorch keep its scalar states (NAdam's product, ASGD's step size) in this precision."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def torch_options(case: Case) -> dict[str, Any]:
    """Return the options of a case under their names in PyTorch."""
    own = case.make().get_config()
    options: dict[str, Any] = {"lr": own["learning_rate"], "foreach": False}
    if case.optimizer == "RAdam":
        options |= {"betas": (own["beta_1"], own["beta_2"]), "eps": own["epsilon"]}
        options |= {"weight_decay": own["weight_decay"] or 0, "decoupled_weight_decay": True}
    if case.optimizer == "ASGD":
        options |= {name: own[name] for name in ("lambd", "alpha", "t0")}
    if case.optimizer == "Rprop":
        options["etas"] = own["eta_minus"], own["eta_plus"]
        options["step_sizes"] = own["step_size_min"], own["step_size_max"]
    return options


def made_by_optax(optax: Any, case: Case) -> Any:
    own = case.make().get_config()
    name, names = OPTAX[case.optimizer]
    options = {theirs or ours: own[ours] or 0.0 for ours, theirs in names.items()}
    if case.optimizer == "Yogi":  # optax.yogi has no argument for the initial moments
        scale = optax.scale_by_yogi(**options, initial_accumulator_value=own["initial_accumulator_value"])
        return optax.chain(scale, optax.scale_by_learning_rate(own["learning_rate"]))
    if case.optimizer == "Adopt":
        power = own["clip_power"]
        options |= {"use_clipping": power is not None, "clip_value_fn": lambda count: count**power}
    if case.optimizer == "Prodigy":
        options |= {"betas": (own["beta_1"], own["beta_2"]), "beta3": own["beta_3"]}
    make = getattr(optax, name, None) or getattr(optax.contrib, name)
    return make(own["learning_rate"], **options)
