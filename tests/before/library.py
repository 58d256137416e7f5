"""The rule of examples/library without fastvar, with the options that its users ask for.

These are schedules, checked arguments, clipping, weight decay, averaged weights, accumulated gradients, and state
that is saved and restored.
"""

from __future__ import annotations

import numpy as np


class NormalizedSteps:
    """Momentum divided by a running mean of the sizes of gradients."""

    def __init__(
        self,
        variables,
        learning_rate=0.01,
        momentum=0.9,
        *,
        weight_decay=None,
        clipnorm=None,
        global_clipnorm=None,
        ema_momentum=None,
        accumulation_steps=1,
    ):
        if not callable(learning_rate) and not learning_rate >= 0:
            raise ValueError(f"learning_rate must be at least 0, got {learning_rate}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if clipnorm is not None and global_clipnorm is not None:
            raise ValueError("clipnorm and global_clipnorm exclude each other")
        self.variables = list(variables)
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.clipnorm, self.global_clipnorm = clipnorm, global_clipnorm
        self.ema_momentum, self.accumulation_steps = ema_momentum, accumulation_steps
        self.iterations = self.calls = 0
        self.velocity = [np.zeros_like(w) for w in self.variables]
        self.length = [np.zeros_like(w) for w in self.variables]
        self.averages = [w.copy() for w in self.variables]
        self.sums = [np.zeros_like(w) for w in self.variables]

    def apply(self, gradients):
        gradients = [np.asarray(g) for g in gradients]
        for w, g in zip(self.variables, gradients, strict=True):
            if g.shape != w.shape:
                raise ValueError(f"gradient must have the shape {w.shape} of the variable, got {g.shape}")
        if self.accumulation_steps > 1:
            self.calls += 1
            self.sums = [total + g for total, g in zip(self.sums, gradients, strict=True)]
            if self.calls % self.accumulation_steps:
                return
            gradients = [total / self.accumulation_steps for total in self.sums]
            self.sums = [np.zeros_like(total) for total in self.sums]
        gradients = self._clipped(gradients)
        rate = self.learning_rate
        rate = rate(self.iterations) if callable(rate) else rate
        self.iterations += 1
        take = 1 - self.momentum
        for i, (w, g) in enumerate(zip(self.variables, gradients, strict=True)):
            if self.weight_decay:
                w[...] -= rate * self.weight_decay * w
            self.velocity[i] += take * (g - self.velocity[i])
            self.length[i] += take * (np.abs(g) - self.length[i])
            w[...] -= rate * self.velocity[i] / (self.length[i] + 1e-8)
            if self.ema_momentum is not None:
                self.averages[i] += (1 - self.ema_momentum) * (w - self.averages[i])

    def _clipped(self, gradients):
        if self.clipnorm is not None:
            norms = [np.sqrt((g.astype(np.float64) ** 2).sum()) for g in gradients]
            return [g * min(1, self.clipnorm / max(n, 1e-12)) for g, n in zip(gradients, norms, strict=True)]
        if self.global_clipnorm is not None:
            norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients))
            return [g * min(1, self.global_clipnorm / max(norm, 1e-12)) for g in gradients]
        return gradients

    def state(self):
        """Return arrays for `numpy.savez`."""
        saved = {"iterations": np.array(self.iterations), "calls": np.array(self.calls)}
        for name in ("variables", "velocity", "length", "averages", "sums"):
            saved |= {f"{name}/{i}": array for i, array in enumerate(getattr(self, name))}
        return saved

    def load_state(self, saved):
        for name in ("variables", "velocity", "length", "averages", "sums"):
            for i, array in enumerate(getattr(self, name)):
                if saved[f"{name}/{i}"].shape != array.shape:
                    raise ValueError(f"{name}/{i}: the file has the shape {saved[f'{name}/{i}'].shape}")
                array[...] = saved[f"{name}/{i}"]
        self.iterations, self.calls = int(saved["iterations"]), int(saved["calls"])
