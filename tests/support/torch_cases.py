"""The table of options of `fastvar.torch`: every class of torch.optim with every option that both have."""

from __future__ import annotations

from typing import Any

import pytest

import fastvar as fv
import fastvar.torch

OWN: dict[str, list[dict[str, Any]]] = {  # for every class, options that show each of them
    "SGD": [
        {"lr": 0.1},
        {"lr": 0.1, "dampening": 0.5},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ],
    "Adam": [
        {"lr": 0.1},
        {"lr": 0.1, "amsgrad": True, "betas": (0.9, 0.75)},
        {"lr": 0.1, "betas": (0.5, 0.75), "eps": 0.1},
        {"lr": 0.1, "amsgrad": True, "eps": 0.1},
    ],
    "AdamW": [{"lr": 0.1}, {"lr": 0.1, "amsgrad": True, "betas": (0.5, 0.75), "eps": 0.1}],
    "NAdam": [{"lr": 0.1}, {"lr": 0.1, "momentum_decay": 0.5, "betas": (0.5, 0.75), "eps": 0.1}],
    "RAdam": [{"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.875), "eps": 0.1}],
    "Adamax": [{"lr": 0.1}, {"lr": 0.1, "betas": (0.5, 0.75), "eps": 0.1}],
    "RMSprop": [
        {"lr": 0.1},
        {"lr": 0.1, "alpha": 0.5, "eps": 0.1},
        {"lr": 0.1, "momentum": 0.5},
        {"lr": 0.1, "centered": True},
        {"lr": 0.1, "centered": True, "momentum": 0.5, "eps": 0.1},
    ],
    "Adagrad": [
        {"lr": 0.1},
        {"lr": 0.1, "lr_decay": 0.5},
        {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 0.1},
    ],
    "Adadelta": [{}, {"lr": 0.5, "rho": 0.5, "eps": 0.1}],
    "ASGD": [{"lr": 0.1}, {"lr": 0.1, "lambd": 0.5, "alpha": 0.5, "t0": 5.0}],
    "Rprop": [{"lr": 0.1}, {"lr": 0.1, "etas": (0.25, 1.5), "step_sizes": (0.05, 0.2)}],
}
OF_MATRICES: dict[str, list[dict[str, Any]]] = {  # see test_matrix.py
    "Adafactor": [
        {"lr": 0.1},
        {"lr": 0.1, "beta2_decay": -0.5, "eps": (0.5, 0.1), "d": 1.5},
        {"eps": (1.5, 1e-3), "weight_decay": 0.25, "maximize": True},
        {"lr": 0.1, "eps": (1e-3, 0.5), "beta2_decay": -1.0},
    ],
    "Muon": [
        {},
        {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.0, "ns_steps": 6},
        {"lr": 0.01, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
        {"ns_coefficients": (3.4, -4.7, 2.0), "momentum": 0.0, "eps": 1.0},
    ],
}
ALIKE: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.25},
    {"maximize": True},
    {"maximize": True, "weight_decay": 0.25},
]
LEFT_OUT = {"foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay"}
TABLE = [
    (name, {**own, **alike})
    for name, every in OWN.items()
    for own in every
    for alike in ALIKE
    if name != "Rprop" or "weight_decay" not in alike  # PyTorch's has none
]
IDS = [f"{name}-{','.join(f'{k}={v}' for k, v in options.items())}" for name, options in TABLE]

FEW = [
    (name, {**own, **ALIKE[i % 4 if name != "Rprop" else 2]}) for name, e in OWN.items() for i, own in enumerate(e)
]

few_cases = pytest.mark.parametrize(("name", "options"), FEW, ids=[IDS[TABLE.index(case)] for case in FEW])
every_case = pytest.mark.parametrize(("name", "options"), TABLE, ids=IDS)
one_of_each = pytest.mark.parametrize(("name", "options"), [(n, o[-1]) for n, o in OWN.items()], ids=[*OWN])
every_class = pytest.mark.parametrize("name", [*OWN, "Adafactor"])


def make(name: str, *args: Any, **options: Any) -> fv.torch.TorchOptimizer:
    return getattr(fv.torch, name)(*args, **options)  # type: ignore[no-any-return]
