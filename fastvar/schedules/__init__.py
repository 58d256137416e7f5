"""Schedules: functions of the iteration. Those of Keras have its names and meaning."""

from fastvar.schedules.base import LearningRateSchedule
from fastvar.schedules.cyclic import CosineDecayRestarts, Cyclic, OneCycle
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
