"""Training runs with state of every kind, for the tests of checkpoints."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

import fastvar as fv

EVERYTHING = {  # every option that has state or affects a step
    "weight_decay": 0.01,
    "global_clipnorm": 1.5,
    "use_ema": True,
    "ema_momentum": 0.9,
    "ema_overwrite_frequency": 5,
    "loss_scale_factor": 4.0,
    "gradient_accumulation_steps": 2,
}


class Training:
    """A training run with state of every kind. Every run starts from the same state."""

    def __init__(self, case: Any, schedule: bool = True) -> None:
        self.w = fv.Variable(
            np.linspace(-1, 1, 1500, dtype=np.float32),
            name="w",
            regularizer=fv.regularizers.L1L2(1e-3, 1e-2),
            constraint=fv.constraints.NonNeg(),
        )
        self.b = fv.Variable(
            np.ones((3, 4)), regularizer=fv.regularizers.L2(1e-2), constraint=fv.constraints.MaxNorm(1.5)
        )
        options = dict(EVERYTHING)
        if schedule:
            options["learning_rate"] = fv.schedules.CosineDecay(0.05, 40)
        self.optimizer = case.make(**options)
        self.rng = np.random.default_rng(7)
        self.legacy = np.random.RandomState(3)
        self.python = random.Random(5)
        self.data = {"position": 0, "seen": np.zeros(2)}
        self.checkpoint = fv.Checkpoint(
            variables=[self.w, self.b],
            optimizer=self.optimizer,
            rng=self.rng,
            legacy=self.legacy,
            python=self.python,
            data=self.data,
        )

    def train(self, steps: int) -> None:
        if not self.optimizer.groups:
            self.optimizer.build([self.w, {"variables": [self.b], "weight_decay": 0.5}])
        for _ in range(steps):
            scale = self.python.random() + self.legacy.random_sample()
            self.optimizer.apply(
                [self.rng.normal(size=v.shape) * scale + v.value for v in (self.w, self.b)], [self.w, self.b]
            )
            self.data["position"] += 1
            self.data["seen"] = self.data["seen"] + scale

    def everything(self) -> list[Any]:
        arrays = [v.numpy().tobytes() for v in [self.w, self.b, *self.optimizer.variables]]
        return [*arrays, self.optimizer._steps, self.rng.random(), self.python.random(), str(self.data)]
