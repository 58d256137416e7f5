"""Schedules: functions of the iteration. Those of Keras have its names and meaning."""

from typing import TYPE_CHECKING

from fastvar.names import public as _public
from fastvar.schedules.base import LearningRateSchedule
from fastvar.schedules.cycles import CosineDecayRestarts, Cyclic, OneCycle
from fastvar.schedules.decay import (
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    LinearDecay,
    PiecewiseConstantDecay,
    PolynomialDecay,
)
from fastvar.schedules.joined import Sequential, Warmup
from fastvar.schedules.plateau import ReduceOnPlateau

__all__ = [
    "CosineDecay",
    "CosineDecayRestarts",
    "Cyclic",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "LinearDecay",
    "OneCycle",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "ReduceOnPlateau",
    "Sequential",
    "Warmup",
]

if not TYPE_CHECKING:  # with a __getattr__, type checkers allow every name
    __getattr__, __dir__ = _public("fastvar.schedules", __all__)
