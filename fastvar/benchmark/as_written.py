"""Rules in NumPy as people usually write them: a loop over variables, a new array for every operation.

Every function takes the weights and the gradients, and returns a function that updates the weights in place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Arrays = list[npt.NDArray[np.floating]]
Step = Callable[[], None]


def gradient_descent(ws: Arrays, gs: Arrays) -> Step:
    def step() -> None:
        for i, g in enumerate(gs):
            ws[i] -= 0.001 * g

    return step


def momentum(ws: Arrays, gs: Arrays) -> Step:
    ms = [np.zeros_like(w) for w in ws]

    def step() -> None:
        for i, g in enumerate(gs):
            ms[i] = 0.9 * ms[i] - 0.001 * g
            ws[i] += ms[i]

    return step


def adam(ws: Arrays, gs: Arrays) -> Step:
    ms = [np.zeros_like(w) for w in ws]
    vs = [np.zeros_like(w) for w in ws]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        for i, g in enumerate(gs):
            ms[i] = 0.9 * ms[i] + 0.1 * g
            vs[i] = 0.999 * vs[i] + 0.001 * g**2
            m_hat = ms[i] / (1 - 0.9**t)
            v_hat = vs[i] / (1 - 0.999**t)
            ws[i] -= 0.001 * m_hat / (np.sqrt(v_hat) + 1e-8)

    return step


def amsgrad(ws: Arrays, gs: Arrays) -> Step:
    ms = [np.zeros_like(w) for w in ws]
    vs = [np.zeros_like(w) for w in ws]
    peaks = [np.zeros_like(w) for w in ws]
    t = 0

    def step() -> None:
        nonlocal t
        t += 1
        for i, g in enumerate(gs):
            ms[i] = 0.9 * ms[i] + 0.1 * g
            vs[i] = 0.999 * vs[i] + 0.001 * g**2
            peaks[i] = np.maximum(peaks[i], vs[i])
            m_hat = ms[i] / (1 - 0.9**t)
            v_hat = peaks[i] / (1 - 0.999**t)
            ws[i] -= 0.001 * m_hat / (np.sqrt(v_hat) + 1e-8)

    return step


def adamw_clip_ema(ws: Arrays, gs: Arrays) -> Step:
    update = adam(ws, clipped := list(gs))
    averages = [w.copy() for w in ws]

    def step() -> None:
        norm = np.sqrt(sum(np.sum(g**2) for g in gs))
        scale = min(1.0, 1.0 / float(norm))
        for i, g in enumerate(gs):
            clipped[i] = g * scale
            ws[i] -= 0.001 * 0.004 * ws[i]
        update()
        for i, w in enumerate(ws):
            averages[i] = 0.99 * averages[i] + 0.01 * w

    return step
