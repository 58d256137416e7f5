"""What is meant by a name that is not there: one of ours in another spelling, or of another library."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

_ENDINGS = ("optimizer", "initializer", "regularizer", "schedule", "lr")  # as those of AdamOptimizer, CyclicLR
_ELSEWHERE = {  # names of TensorFlow 1, PyTorch and optax, as `_plain` gives them
    "gradientdescent": "SGD",
    "momentum": "SGD",
    "amsgrad": "Adam",
    "nadamw": "Nadam",
    "adamwschedulefree": "ScheduleFreeAdamW",
    "cosineannealing": "CosineDecay",
    "cosineannealingwarmrestarts": "CosineDecayRestarts",
    "multistep": "PiecewiseConstantDecay",
    "normal": "RandomNormal",
    "uniform": "RandomUniform",
    "xavieruniform": "GlorotUniform",
    "xaviernormal": "GlorotNormal",
    "kaiminguniform": "HeUniform",
    "kaimingnormal": "HeNormal",
}

ALIASES = {  # of hyperparameters, in other libraries
    "lr": "learning_rate",
    "betas": "beta_1",
    "eps": "epsilon",
    "max_grad_norm": "global_clipnorm",
}
OF_TORCH = {  # hyperparameters that only fastvar.torch has
    "adjust_lr_fn",
    "beta2_decay",
    "betas",
    "d",
    "dampening",
    "etas",
    "lr_decay",
    "maximize",
    "ns_coefficients",
    "params",
    "step_sizes",
}


def public(
    module: str, names: list[str], others: Mapping[str, Iterable[str]] | None = None
) -> tuple[Callable[[str], NoReturn], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a module: it shows its public names, and an unknown one is told.

    `others` are names elsewhere that may be meant, by what stands before them.
    """

    def refuse(name: str) -> NoReturn:
        raise unknown(module, name, {f"{module.replace('fastvar', 'fv', 1)}.": names, **(others or {})})

    return refuse, lambda: names


def unknown(module: str, name: str, places: Mapping[str, Iterable[str]]) -> AttributeError:
    """Return the error for a name that a module does not have. It says which of the `places` is meant."""
    hint = "" if name.startswith("_") else did_you_mean(name, places)
    return AttributeError(f"module {module!r} has no attribute {name!r}{hint}")


def did_you_mean(name: str, places: Mapping[str, Iterable[str]]) -> str:
    """Return the end of a message about an unknown name, or nothing.

    Parameters
    ----------
    name : str
        The unknown name.
    places : mapping
        What may be meant: names, by what stands before them.

    Examples
    --------
    >>> did_you_mean("AdamOptimizer", {"fv.optimizers.": ["SGD", "Adam"]})
    '; did you mean fv.optimizers.Adam?'
    """
    plain: dict[str, str] = {}
    for place, names in places.items():
        for each in names:
            plain.setdefault(_plain(each), f"{place}{each}")
    wanted = _plain(name)
    wanted = _plain(_ELSEWHERE.get(wanted, wanted))
    close = [wanted] if wanted in plain else difflib.get_close_matches(wanted, plain, n=1, cutoff=0.8)
    return f"; did you mean {plain[close[0]]}?" if close else ""


def _plain(name: str) -> str:
    """Return a name in lower case, without underscores, and without the ending that some libraries give it."""
    plain = name.lower().replace("_", "")
    return next((short for end in _ENDINGS if (short := plain.removesuffix(end)) not in ("", plain)), plain)
