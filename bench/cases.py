"""The table of benchmarks. A new rule is one row of ALGORITHMS; `numpy` and `torch` are optional."""

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
class Algorithm:
    """An optimizer with its options, and its rivals; `kernel` is the name of its rule in fastvar.kernels.RULES."""

    name: str
    kernel: str
    optimizer: Callable[[], Optimizer]
    numpy: tuple[Baseline, Baseline] | None = None  # as usually written, and with out=
    torch: dict[str, Any] | None = field(default=None, hash=False)  # name and arguments of the optimizer
    clip_and_average: bool = False  # it reads the gradient twice, and updates an average
    matrix: bool = False  # the variables are matrices, as square as possible
    large: tuple[int, int] = (1, 2**24)  # the second shape, if there is no rival


ALGORITHMS = (
    Algorithm(
        "sgd",
        "gradient_descent",
        lambda: SGD(0.001),
        (as_written.gradient_descent, with_out.gradient_descent),
        {"name": "SGD", "lr": 0.001},
    ),
    Algorithm(
        "momentum",
        "momentum",
        lambda: SGD(0.001, momentum=0.9),
        (as_written.momentum, with_out.momentum),
        {"name": "SGD", "lr": 0.001, "momentum": 0.9},
    ),
    Algorithm(
        "adam",
        "adam",
        lambda: Adam(0.001, epsilon=1e-8),
        (as_written.adam, with_out.adam),
        {"name": "Adam", "lr": 0.001},
    ),
    Algorithm("adam+guard", "adam", lambda: Adam(0.001, epsilon=1e-8, nonfinite="skip")),
    Algorithm(
        "amsgrad",
        "amsgrad",
        lambda: Adam(0.001, epsilon=1e-8, amsgrad=True),
        (as_written.amsgrad, with_out.amsgrad),
        {"name": "Adam", "lr": 0.001, "amsgrad": True},
    ),
    Algorithm("lion", "sign_momentum", lambda: Lion(0.001)),
    Algorithm("radam", "radam", lambda: RAdam(0.001)),
    Algorithm("adabelief", "adabelief", lambda: AdaBelief(0.001)),
    Algorithm("yogi", "yogi", lambda: Yogi(0.001)),
    Algorithm("adamax", "adamax", lambda: Adamax(0.001)),
    Algorithm("ademamix", "ademamix", lambda: AdEMAMix(0.001)),
    Algorithm("adan", "adan", lambda: Adan(0.001)),
    Algorithm("adopt", "adopt", lambda: Adopt(0.001)),
    Algorithm("schedule-free", "schedule_free", lambda: ScheduleFreeAdamW(0.001)),
    Algorithm("rmsprop", "rmsprop", lambda: RMSprop(0.001)),
    Algorithm("rmsprop-momentum", "rmsprop_momentum", lambda: RMSprop(0.001, momentum=0.9)),
    Algorithm("rmsprop-centered", "rmsprop_centered", lambda: RMSprop(0.001, centered=True)),
    Algorithm("adadelta", "adadelta", lambda: Adadelta(1.0)),
    Algorithm("ftrl", "ftrl", lambda: Ftrl(0.001)),
    Algorithm("rprop", "rprop", lambda: Rprop(0.001)),
    Algorithm("asgd", "asgd", lambda: ASGD(0.001)),
    # These measure before they update. Their traffic limit is that of the update.
    Algorithm("lamb", "adam", lambda: fv.optimizers.Lamb(0.001)),
    Algorithm("lars", "momentum", lambda: fv.optimizers.Lars(0.001)),
    Algorithm("prodigy", "prodigy", fv.optimizers.Prodigy),
    Algorithm("adafactor", "gradient_descent", lambda: fv.optimizers.Adafactor(0.001), matrix=True),
    Algorithm("muon", "momentum", lambda: fv.optimizers.Muon(0.001), matrix=True, large=(1, 2**20)),
)
CLIP_DECAY_EMA = Algorithm(
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
    """An algorithm on a number of variables of equal size."""

    algorithm: Algorithm
    dtype: str
    shape: tuple[int, int]
    threads: int

    @property
    def bytes(self) -> int:
        """The memory traffic of a fused update: what it writes it also reads; the gradient it only reads."""
        streams = 2 * self.written + 1 + self.algorithm.clip_and_average
        return streams * prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def written(self) -> int:
        """How many arrays of the size of the weights are updated: weights, slots, average."""
        algorithm, optimizer = self.algorithm, self.algorithm.optimizer()
        probe = fv.Variable(np.zeros((2, 2) if algorithm.matrix else 4))
        slots = (s for s in optimizer.slots if optimizer.has_slot(s, probe))
        return 1 + sum(optimizer.slot_shape(s, probe) == probe.shape for s in slots) + algorithm.clip_and_average

    @property
    def id(self) -> str:
        """Name for pytest's `-k`."""
        variables, elements = self.shape
        return f"{self.algorithm.name}-{self.dtype}-{variables}x{elements}-{self.threads}thr"

    def __str__(self) -> str:
        variables, elements = self.shape
        size = f"2^{elements.bit_length() - 1}" if elements >= 2**16 else f"{elements:,}"
        threads = f"{self.threads} thread{'s'[: self.threads - 1]}"
        return f"{self.algorithm.name} {self.dtype} {variables:,} x {size}, {threads}"


COMPARED = [algorithm for algorithm in ALGORITHMS if algorithm.numpy]  # in every shape; the others only in two
CASES = [
    *(Case(*row) for row in product(COMPARED, DTYPES, SHAPES, THREADS) if row[2:] != ((1, 64), 2)),
    *(Case(each, "float32", (1, 2**16), 1) for each in ALGORITHMS if not each.numpy),
    *(Case(each, "float32", each.large, 2) for each in ALGORITHMS if not each.numpy),
    Case(CLIP_DECAY_EMA, "float32", (1, 2**24), 2),
]
