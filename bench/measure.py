"""Time several ways to do one thing side by side, so that their ratios survive a noisy machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

MIN_ROUNDS = 7
Run = Callable[[int], object]  # does the thing so many times


def timed(run: Run, number: int) -> float:
    start = perf_counter()
    run(number)
    return perf_counter() - start


def calibrated(run: Run, seconds: float) -> int:
    """Return how many times fill `seconds`, at least 1."""
    run(1)  # the first time is not like the others: plans are made, pages and threads come to be
    number = 1
    while (took := timed(run, number)) < seconds / 4:
        number *= 4
    return max(1, round(number * seconds / took))


def interleaved(
    runs: Mapping[str, Run], rounds: int = 41, seconds: float = 0.005, enough: float = 6.0
) -> dict[str, list[float]]:
    """Return the seconds per time of each run in each round; a round measures every run once, in turn.

    Measurements are many and short, so that another process disturbs few of them; slow runs get fewer
    rounds, but at least MIN_ROUNDS, once `enough` seconds have passed.
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
                # Untimed first: it brings the arrays into the caches, and outlasts the spinning of idle threads
                # that another OpenMP runtime (torch brings its own) leaves on the processors.
                run(numbers[name])
                times[name].append(timed(run, numbers[name]) / numbers[name])
    finally:
        if collecting:
            gc.enable()
    return times


def ratio(times: list[float], base: list[float]) -> float:
    """Return how many times as long as `base`: the median over rounds, each compared within itself."""
    return median(t / b for t, b in zip(times, base, strict=True))
