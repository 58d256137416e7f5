"""Time several ways to do the same thing, interleaved, so that their ratios hold on a noisy machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

MIN_ROUNDS = 7
Run = Callable[[int], object]  # runs a number of times


def timed(run: Run, number: int) -> float:
    start = perf_counter()
    run(number)
    return perf_counter() - start


def calibrated(run: Run, seconds: float) -> int:
    """Return how many runs take about `seconds`, at least 1."""
    run(1)  # the first run also makes plans, and starts threads and uses new memory
    number = 1
    while (took := timed(run, number)) < seconds / 4:
        number *= 4
    return max(1, round(number * seconds / took))


def interleaved(
    runs: Mapping[str, Run], rounds: int = 41, seconds: float = 0.005, enough: float = 6.0
) -> dict[str, list[float]]:
    """Return the seconds of each run in each round. A round measures every run once, in turn.

    Measurements are many and short, so that other processes disturb only few of them. After `enough` seconds no
    new round begins, but there are at least MIN_ROUNDS.
    """
    numbers = {name: calibrated(run, seconds) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = perf_counter() + enough
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= MIN_ROUNDS and perf_counter() > end:
                break
            for name, run in runs.items():
                # First without timing, to fill the caches, and to let idle
                # threads of others (PyTorch's) stop spinning.
                run(numbers[name])
                times[name].append(timed(run, numbers[name]) / numbers[name])
    finally:
        if collecting:
            gc.enable()
    return times


def ratio(times: list[float], base: list[float]) -> float:
    """Return the median over rounds of `times` divided by `base`."""
    return median(t / b for t, b in zip(times, base, strict=True))
