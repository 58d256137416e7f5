"""Rules in NumPy at its best: scalars combined, state updated in place, no new array in a step."""

from __future__ import annotations

from math import sqrt

import numpy as np

from fastvar.benchmark.as_written import Arrays, Step


def gradient_descent(ws: Arrays, gs: Arrays) -> Step:
    temporaries = [np.empty_like(w) for w in ws]

    def step() -> None:
        for w, g, x in zip(ws, gs, temporaries, strict=True):
            np.multiply(g, 0.001, out=x)
            np.subtract(w, x, out=w)

    return step


def momentum(ws: Arrays, gs: Arrays) -> Step:
    state = [(np.zeros_like(w), np.empty_like(w)) for w in ws]

    def step() -> None:
        for w, g, (m, x) in zip(ws, gs, state, strict=True):
            np.multiply(g, 0.001, out=x)
            np.multiply(m, 0.9, out=m)
            np.subtract(m, x, out=m)
            np.add(w, m, out=w)

    return step


def adam(ws: Arrays, gs: Arrays, amsgrad: bool = False) -> Step:
    zeros, empty = np.zeros_like, np.empty_like
    state = [(zeros(w), zeros(w), zeros(w) if amsgrad else None, empty(w)) for w in ws]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        correction = sqrt(1 - 0.999**t)
        rate, epsilon = 0.001 * correction / (1 - 0.9**t), 1e-8 * correction
        for w, g, (m, v, peak, x) in zip(ws, gs, state, strict=True):
            np.multiply(m, 0.9, out=m)
            np.multiply(g, 0.1, out=x)
            np.add(m, x, out=m)
            np.multiply(g, g, out=x)
            np.multiply(x, 0.001, out=x)
            np.multiply(v, 0.999, out=v)
            np.add(v, x, out=v)
            if peak is not None:
                np.maximum(peak, v, out=peak)
            np.sqrt(v if peak is None else peak, out=x)
            np.add(x, epsilon, out=x)
            np.divide(m, x, out=x)
            np.multiply(x, rate, out=x)
            np.subtract(w, x, out=w)

    return step


def amsgrad(ws: Arrays, gs: Arrays) -> Step:
    return adam(ws, gs, amsgrad=True)


def adamw_clip_ema(ws: Arrays, gs: Arrays) -> Step:
    clipped = [np.empty_like(g) for g in gs]
    averages = [w.copy() for w in ws]
    update = adam(ws, clipped)

    def step() -> None:
        scale = min(1.0, 1.0 / sqrt(sum(float(np.dot(g.ravel(), g.ravel())) for g in gs)))
        for w, g, x in zip(ws, gs, clipped, strict=True):
            np.multiply(w, 1 - 0.001 * 0.004, out=w)
            np.multiply(g, scale, out=x)
        update()
        for w, a, x in zip(ws, averages, clipped, strict=True):  # the clipped gradient is no longer needed
            np.multiply(a, 0.99, out=a)
            np.multiply(w, 0.01, out=x)
            np.add(a, x, out=a)

    return step
