"""Time several ways to do one thing side by side, so that their ratios survive a noisy machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

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


def interleaved(runs: Mapping[str, Run], rounds: int = 11, seconds: float = 0.02) -> dict[str, list[float]]:
    """Return the seconds per time of each run in each round; a round measures every run once, in turn."""
    numbers = {name: calibrated(run, seconds) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, run in runs.items():
                # Untimed first: brings its arrays into the caches, and outlasts the spinning of idle threads
                # that another OpenMP runtime (torch brings its own) leaves on the processors.
                run(max(1, numbers[name] // 3))
                times[name].append(timed(run, numbers[name]) / numbers[name])
    finally:
        if collecting:
            gc.enable()
    return times


def ratio(times: list[float], base: list[float]) -> float:
    """Return how many times as long as `base`: the median over rounds, each compared within itself."""
    return median(t / b for t, b in zip(times, base, strict=True))
