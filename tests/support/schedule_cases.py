"""The table of schedules for the tests: each with its oracle and the steps at which it has a kink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optax

from fastvar import schedules as s

FAR = (999, 12_345)  # beyond the end


@dataclass(frozen=True)
class Row:
    """A schedule and the steps of its kinks, around which it is compared, too."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    bends: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.arguments.items())})".split(" at 0x")[0]

    def make(self) -> Any:
        return getattr(s, self.name)(**self.arguments)

    @property
    def steps(self) -> list[int]:
        around = {bend + i for bend in self.bends for i in (-1, 0, 1)}
        return sorted({*range(70), *around, *FAR} - {-1})


TIMED = {"initial_learning_rate": 0.3, "decay_steps": 20}
WARM = {"initial_learning_rate": 0.05, "decay_steps": 20, "warmup_target": 0.3}
RESTARTS = {"initial_learning_rate": 0.3, "first_decay_steps": 10}
LONG_RESTARTS = {**RESTARTS, "first_decay_steps": 1000}
PIECES = {"boundaries": [10, 25, 100], "values": [0.3, 0.2, 0.25, 0.1]}

IN_KERAS = [
    Row("CosineDecay", TIMED, (20,)),
    Row("CosineDecay", {**TIMED, "alpha": 0.25}, (20,)),
    Row("CosineDecay", {**TIMED, "alpha": 1.5}, (20,)),
    Row("CosineDecay", {**WARM, "warmup_steps": 7}, (7, 27)),
    Row("CosineDecay", {**WARM, "warmup_steps": 7, "alpha": 0.1}, (7, 27)),
    Row("CosineDecay", {**WARM, "warmup_target": 0.01, "warmup_steps": 7}, (7, 27)),
    Row("CosineDecay", {**TIMED, "warmup_steps": 7}, (20,)),  # no target: no warmup
    Row("CosineDecayRestarts", RESTARTS, (10, 30, 70, 150, 310)),
    Row("CosineDecayRestarts", {**RESTARTS, "t_mul": 1.0}, (10, 20, 30)),
    Row("CosineDecayRestarts", {**RESTARTS, "t_mul": 3.0, "m_mul": 0.5}, (10, 40, 130)),
    Row("CosineDecayRestarts", {**RESTARTS, "t_mul": 1.5, "alpha": 0.2, "m_mul": 0.9}, (10, 25)),
    Row("CosineDecayRestarts", {**LONG_RESTARTS, "t_mul": 1.0, "m_mul": 1.25, "alpha": 0.1}, (1000, 2000)),
    Row("ExponentialDecay", {**TIMED, "decay_rate": 0.5}, (20, 40)),
    Row("ExponentialDecay", {**TIMED, "decay_rate": 0.9, "staircase": True}, (20, 40, 60)),
    Row("ExponentialDecay", {**TIMED, "decay_rate": 1.25, "decay_steps": 200}),
    Row("ExponentialDecay", {**TIMED, "decay_rate": 0.0}),
    Row("InverseTimeDecay", {**TIMED, "decay_rate": 0.5}, (20, 40)),
    Row("InverseTimeDecay", {**TIMED, "decay_rate": 2.0, "staircase": True}, (20, 40, 60)),
    Row("InverseTimeDecay", {**TIMED, "decay_rate": 0.5, "decay_steps": 1.0}),
    Row("PiecewiseConstantDecay", PIECES, (10, 25, 100)),
    Row("PiecewiseConstantDecay", {"boundaries": [0], "values": [0.3, 0.1]}),
    Row("PolynomialDecay", TIMED, (20,)),
    Row("PolynomialDecay", {**TIMED, "end_learning_rate": 0.1, "power": 2.0}, (20,)),
    Row("PolynomialDecay", {**TIMED, "end_learning_rate": 0.5, "power": 0.5}, (20,)),
    Row("PolynomialDecay", {**TIMED, "power": 0.0}),
    Row("PolynomialDecay", {**TIMED, "cycle": True}, (20, 40, 60)),
    Row("PolynomialDecay", {**TIMED, "cycle": True, "power": 3.0, "end_learning_rate": 0.05}, (20, 40, 60)),
]


def hyperbola(step: Any) -> Any:
    return 0.5 / (1 + abs(step))


def optax_decay(step: Any) -> Any:
    return optax.polynomial_schedule(0.3, 0.1, 2.0, 20)(step)


LINE = {"initial_learning_rate": 0.3, "decay_steps": 20}
CYCLE = {"max_learning_rate": 0.3, "total_steps": 41, "pct_start": 11 / 41}
DECAY = s.PolynomialDecay(0.3, 20, 0.1, power=2.0)
IN_OPTAX: list[tuple[Row, Callable[[], Callable[[int], Any]]]] = [
    (Row("LinearDecay", LINE, (20,)), lambda: optax.linear_schedule(0.3, 0.0, 20)),
    (
        Row("LinearDecay", {**LINE, "end_learning_rate": 0.5}, (20,)),
        lambda: optax.linear_schedule(0.3, 0.5, 20),
    ),
    (Row("Warmup", {"schedule": 0.3, "warmup_steps": 8}, (8,)), lambda: optax.linear_schedule(0.0, 0.3, 8)),
    (
        Row("Warmup", {"schedule": DECAY, "warmup_steps": 8, "initial_learning_rate": 0.1}, (8, 28)),
        lambda: optax.join_schedules([optax.linear_schedule(0.1, 0.3, 8), optax_decay], [8]),
    ),
    (
        Row("Sequential", {"schedules": [0.1, DECAY, hyperbola], "boundaries": [5, 30]}, (5, 30)),
        lambda: optax.join_schedules([lambda t: 0.1, optax_decay, hyperbola], [5, 30]),
    ),
    (Row("Sequential", {"schedules": [DECAY], "boundaries": []}, (20,)), lambda: optax_decay),
    (Row("OneCycle", CYCLE, (10, 40)), lambda: optax.cosine_onecycle_schedule(40, 0.3, 0.25)),
    (
        Row("OneCycle", {**CYCLE, "div_factor": 5.0, "final_div_factor": 10.0}, (10, 40)),
        lambda: optax.cosine_onecycle_schedule(40, 0.3, 0.25, 5.0, 10.0),
    ),
    (
        Row("OneCycle", {**CYCLE, "anneal_strategy": "linear", "three_phase": True}, (10, 20, 40)),
        lambda: optax.linear_onecycle_schedule(40, 0.3, 0.25, 0.5, 25.0, 1e4),
    ),
]


IN_TORCH: list[tuple[Row, str, dict[str, Any]]] = [
    (Row("OneCycle", {"max_learning_rate": 0.3, "total_steps": 60, **more}), "OneCycleLR", more)
    for more in (
        {},
        {"anneal_strategy": "linear"},
        {"pct_start": 0.4, "div_factor": 4.0, "final_div_factor": 2.0},
        {"pct_start": 0.3, "three_phase": True},
        {"pct_start": 0.45, "three_phase": True, "anneal_strategy": "linear"},
        {"pct_start": 0.0},
        {"pct_start": 1.0},
    )
] + [
    (
        Row("Cyclic", {"base_learning_rate": 0.05, "max_learning_rate": 0.3, "step_size_up": 8, **more}),
        "CyclicLR",
        {"step_size_up": 8, **more},
    )
    for more in (
        {},
        {"step_size_down": 3},
        {"mode": "triangular2"},
        {"mode": "triangular2", "step_size_down": 20},
        {"mode": "exp_range", "gamma": 0.95},
    )
]
RECORDED = {"best": 0.25, "wait": 1, "cooldown_counter": 2, "value": 0.125}
EVERY = [
    *IN_KERAS,
    *[row for row, _ in IN_OPTAX if "function" not in row.id],
    *[row for row, _, _ in IN_TORCH],
    Row("ReduceOnPlateau", {"initial_learning_rate": 0.5}),
    Row("ReduceOnPlateau", {"initial_learning_rate": 0.5, "mode": "max", "min_lr": 0.1, **RECORDED}),
    Row("Warmup", {"schedule": s.Sequential([DECAY, s.Cyclic(0.1, 0.2, 5), 0.5], [9, 30]), "warmup_steps": 3}),
]
