"""What is measured. A new rule is one row of ALGORITHMS; `numpy` and `torch` are optional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

import fastvar as fv
from fastvar.benchmark import as_written, with_out
from fastvar.optimizer import Optimizer
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
    large: tuple[int, int] = (1, 2**24)  # its largest shape


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
RULES = {each.name: each for each in (*ALGORITHMS, CLIP_DECAY_EMA)}


class Network(NamedTuple):
    """The shapes of the parameters of a network."""

    name: str
    tensors: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Case:
    """An algorithm on a number of variables of equal size, or on the parameters of a network."""

    algorithm: Algorithm
    dtype: str
    shape: tuple[int, int] | Network  # variables x elements
    threads: int

    @property
    def tensors(self) -> tuple[tuple[int, ...], ...]:
        """The shape of every variable."""
        if isinstance(self.shape, Network):
            return self.shape.tensors
        count, size = self.shape
        rows = gcd(size, 1 << size.bit_length() // 2)
        return ((rows, size // rows) if self.algorithm.matrix else (size,),) * count

    @property
    def elements(self) -> int:
        """How many numbers all variables have."""
        return sum(map(prod, self.tensors))

    @property
    def bytes(self) -> int:
        """The memory traffic of a fused update: what it writes it also reads; the gradient it only reads."""
        streams = 2 * self.written + 1 + self.algorithm.clip_and_average
        return streams * self.elements * np.dtype(self.dtype).itemsize

    @property
    def written(self) -> int:
        """How many arrays of the size of the weights are updated: weights, slots, average."""
        algorithm, optimizer = self.algorithm, self.algorithm.optimizer()
        probe = fv.Variable(np.zeros((2, 2) if algorithm.matrix else 4))
        slots = (s for s in optimizer.slots if optimizer.has_slot(s, probe))
        return 1 + sum(optimizer.slot_shape(s, probe) == probe.shape for s in slots) + algorithm.clip_and_average

    @property
    def of_shape(self) -> str:
        """The shape as text: "200 x 1,000", "1 x 2^24" or the name of a network."""
        if isinstance(self.shape, Network):
            return self.shape.name
        variables, elements = self.shape
        power = elements >= 2**16 and elements.bit_count() == 1
        return f"{variables:,} x {f'2^{elements.bit_length() - 1}' if power else f'{elements:,}'}"

    @property
    def id(self) -> str:
        """A name without spaces, for pytest's `-k` and for files."""
        shape = self.of_shape.replace(" ", "").replace(",", "")
        return f"{self.algorithm.name}-{self.dtype}-{shape}-{self.threads}thr"

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s'[: self.threads - 1]}"
        return f"{self.algorithm.name} {self.dtype} {self.of_shape}, {threads}"
