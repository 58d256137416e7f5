"""The table of what is measured. A new rule is one row of RULES; `numpy` and `torch` may be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np

import fastvar as fv
from bench import as_written, with_out
from fastvar import Optimizer
from fastvar.optimizers import (
    ASGD,
    SGD,
    AdaBelief,
    Adadelta,
    Adam,
    Adamax,
    AdamW,
    Adan,
    AdEMAMix,
    Adopt,
    Ftrl,
    Lion,
    RAdam,
    RMSprop,
    Rprop,
    ScheduleFreeAdamW,
    Yogi,
)

Baseline = Callable[[as_written.Arrays, as_written.Arrays], as_written.Step]


@dataclass(frozen=True)
class Rule:
    """A way to update; `kernel` is its name in fastvar.kernels.RULES."""

    name: str
    kernel: str
    optimizer: Callable[[], Optimizer]
    numpy: tuple[Baseline, Baseline] | None = None  # as people write it, and with out=
    torch: dict[str, Any] | None = field(default=None, hash=False)  # the name, and arguments of the optimizer
    clip_and_average: bool = False  # reads the gradient twice, and updates an average too
    matrix: bool = False  # of variables as square as can be
    large: tuple[int, int] = (1, 2**24)  # the second of its two shapes, where there is nobody to compare with


RULES = (
    Rule(
        "sgd",
        "gradient_descent",
        lambda: SGD(0.001),
        (as_written.gradient_descent, with_out.gradient_descent),
        {"name": "SGD", "lr": 0.001},
    ),
    Rule(
        "momentum",
        "momentum",
        lambda: SGD(0.001, momentum=0.9),
        (as_written.momentum, with_out.momentum),
        {"name": "SGD", "lr": 0.001, "momentum": 0.9},
    ),
    Rule(
        "adam",
        "adam",
        lambda: Adam(0.001, epsilon=1e-8),
        (as_written.adam, with_out.adam),
        {"name": "Adam", "lr": 0.001},
    ),
    Rule("adam+guard", "adam", lambda: Adam(0.001, epsilon=1e-8, nonfinite="skip")),
    Rule(
        "amsgrad",
        "amsgrad",
        lambda: Adam(0.001, epsilon=1e-8, amsgrad=True),
        (as_written.amsgrad, with_out.amsgrad),
        {"name": "Adam", "lr": 0.001, "amsgrad": True},
    ),
    Rule("lion", "sign_momentum", lambda: Lion(0.001)),
    Rule("radam", "radam", lambda: RAdam(0.001)),
    Rule("adabelief", "adabelief", lambda: AdaBelief(0.001)),
    Rule("yogi", "yogi", lambda: Yogi(0.001)),
    Rule("adamax", "adamax", lambda: Adamax(0.001)),
    Rule("ademamix", "ademamix", lambda: AdEMAMix(0.001)),
    Rule("adan", "adan", lambda: Adan(0.001)),
    Rule("adopt", "adopt", lambda: Adopt(0.001)),
    Rule("schedule-free", "schedule_free", lambda: ScheduleFreeAdamW(0.001)),
    Rule("rmsprop", "rmsprop", lambda: RMSprop(0.001)),
    Rule("rmsprop-momentum", "rmsprop_momentum", lambda: RMSprop(0.001, momentum=0.9)),
    Rule("rmsprop-centered", "rmsprop_centered", lambda: RMSprop(0.001, centered=True)),
    Rule("adadelta", "adadelta", lambda: Adadelta(1.0)),
    Rule("ftrl", "ftrl", lambda: Ftrl(0.001)),
    Rule("rprop", "rprop", lambda: Rprop(0.001)),
    Rule("asgd", "asgd", lambda: ASGD(0.001)),
    # Those of several passes; the limit is that of one.
    Rule("lamb", "adam", lambda: fv.optimizers.Lamb(0.001)),
    Rule("lars", "momentum", lambda: fv.optimizers.Lars(0.001)),
    Rule("prodigy", "adam", fv.optimizers.Prodigy),
    Rule("adafactor", "gradient_descent", lambda: fv.optimizers.Adafactor(0.001), matrix=True),
    Rule("muon", "momentum", lambda: fv.optimizers.Muon(0.001), matrix=True, large=(1, 2**20)),
)
CLIP_DECAY_EMA = Rule(
    "adamw+clip+ema",
    "adam",
    lambda: AdamW(0.001, epsilon=1e-8, weight_decay=0.004, global_clipnorm=1.0, use_ema=True),
    (as_written.adamw_clip_ema, with_out.adamw_clip_ema),
    {"name": "AdamW", "lr": 0.001, "weight_decay": 0.004},
    clip_and_average=True,
)

DTYPES = ("float32", "float64")
SHAPES = ((1, 64), (1000, 64), (200, 1000), (1, 2**16), (1, 2**20), (1, 2**24))  # variables x elements
THREADS = (1, 2)  # the smallest shape is serial anyway


@dataclass(frozen=True)
class Case:
    """A rule on so many variables of so many elements."""

    rule: Rule
    dtype: str
    shape: tuple[int, int]
    threads: int

    @property
    def bytes(self) -> int:
        """What a fused update moves: everything written is read too, the gradient only read."""
        streams = 2 * self.written + 1 + self.rule.clip_and_average
        return streams * prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def written(self) -> int:
        """How many arrays of the size of the weights are updated: they, their slots, their average."""
        optimizer, probe = self.rule.optimizer(), fv.Variable(np.zeros((2, 2) if self.rule.matrix else 4))
        slots = (s for s in optimizer.slots if optimizer.has_slot(s, probe))
        return 1 + sum(optimizer.slot_shape(s, probe) == probe.shape for s in slots) + self.rule.clip_and_average

    @property
    def id(self) -> str:
        """Name for `-k`."""
        variables, elements = self.shape
        return f"{self.rule.name}-{self.dtype}-{variables}x{elements}-{self.threads}thr"

    def __str__(self) -> str:
        variables, elements = self.shape
        size = f"2^{elements.bit_length() - 1}" if elements >= 2**16 else f"{elements:,}"
        return (
            f"{self.rule.name} {self.dtype} {variables:,} x {size}, {self.threads} thread{'s'[: self.threads - 1]}"
        )


COMPARED = [rule for rule in RULES if rule.numpy]  # in every shape; the others in two
CASES = [
    *(Case(*row) for row in product(COMPARED, DTYPES, SHAPES, THREADS) if row[2:] != ((1, 64), 2)),
    *(Case(rule, "float32", (1, 2**16), 1) for rule in RULES if not rule.numpy),
    *(Case(rule, "float32", rule.large, 2) for rule in RULES if not rule.numpy),
    Case(CLIP_DECAY_EMA, "float32", (1, 2**24), 2),
]
