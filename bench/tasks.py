"""Measure one task of the suite, and return its record."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import fastvar as fv
from bench import jobs, limit
from bench.contention import burning
from bench.savers import Training, savers, sync
from bench.suite import CHECKPOINTS, Task
from fastvar.benchmark.cases import Case
from fastvar.benchmark.contenders import FASTVAR, absent, attempt, contenders, supporting, threads
from fastvar.benchmark.contest import repeated
from fastvar.benchmark.measure import Run, interleaved, ratio

TRAFFIC, ARITHMETIC = "traffic limit", "arithmetic limit"
LIMITS = (TRAFFIC, ARITHMETIC)
ENOUGH = 4.0  # seconds of measurements
FIXED, IN_CACHE = "fixed", "in cache"  # what explains the distance from a limit
PARTS = (FIXED, "one", "small")
SMALL = 2**14  # elements: all arrays of a rule are in the first or second cache
Record = dict[str, Any]


def measured(task: Task, enough: float = ENOUGH) -> Record:
    """Return the record of a task: times, ratios to fastvar's time, and what could not be measured."""
    with threads(task.threads), burning(1) if task.contended else nullcontext():
        found = {"step": steps, "formats": formats, "checkpoint": checkpoints, "job": job}[task.kind](task, enough)
    return {"id": task.id, "kind": task.kind, "threads": task.threads, "contended": task.contended, **found}


def figures(times: Mapping[str, list[float]], base: str = FASTVAR) -> Record:
    """Return medians in seconds, and medians of the ratios in each round."""
    return {
        "seconds": {name: median(took) for name, took in times.items()},
        "ratios": {name: ratio(took, times[base]) for name, took in times.items() if name != base},
    }


def steps(task: Task, enough: float) -> Record:
    """Step a case with every contender that there is memory for, and with both limits."""
    assert task.case is not None
    case, runs, peak, out = task.case, {}, {}, {}
    for each in supporting(case, task.names):
        if free() < 3 * (case.written + 2) * case.elements * np.dtype(case.dtype).itemsize:
            out[each.name] = "memory"
            continue
        before = resident(restart=True)
        made = attempt(each, case)
        if isinstance(made, str):  # a rival that fails is reported, and does not end the run
            out[each.name] = made
            continue
        peak[each.name] = max(0, resident() - before)
        runs[each.name] = repeated(made.step)
    runs |= limits(case) | parts(case)
    times = interleaved(runs, enough=enough)
    fixed, one, small = (median(times.pop(name)) for name in PARTS)
    return {
        **{"rule": case.algorithm.name, "dtype": case.dtype, "shape": case.of_shape},
        **{"variables": len(case.tensors), "elements": case.elements, "bytes": case.bytes},
        **figures(times),
        **{FIXED: fixed, IN_CACHE: max(0.0, small - one) * case.elements / SMALL / case.threads},
        **{"peak": peak, "left out": out, "absent": absent(task.names)},
    }


def limits(case: Case) -> dict[str, Run]:
    """Return the limits for the same elements in one variable, if there is a compiler."""
    found = {ARITHMETIC: limit.arithmetic(case.algorithm.kernel, case.dtype, case.elements, case.threads)}
    if case.written <= limit.MOST:
        written = [fv.buffers.full((case.elements,), case.dtype, 0.5) for _ in range(case.written)]
        g = np.full_like(written[0], 0.1)
        read_first = [g] if case.algorithm.clip_and_average else []
        found[TRAFFIC] = limit.runner(written, g, case.threads, read_first)
    return {name: run for name, run in found.items() if run is not None}


def parts(case: Case) -> dict[str, Run]:
    """Return fastvar's steps of as many variables of one element, of one such, and of a small one in cache."""
    shapes = ((len(case.tensors), 1), (1, 1), (1, SMALL))
    made = [contenders(replace(case, shape=shape), (FASTVAR,))[FASTVAR] for shape in shapes]
    return {name: repeated(each.step) for name, each in zip(PARTS, made, strict=True)}


def formats(task: Task, enough: float) -> Record:
    """Step Adam with weights or slots in other formats, in times of float32."""
    import ml_dtypes

    count, size = map(int, task.id.split("-")[1].split("x"))
    options: dict[str, tuple[Any, dict[str, Any]]] = {
        FASTVAR: (np.float32, {}),
        "slots in bfloat16": (np.float32, {"slot_dtype": "bfloat16"}),
        "slots in 8 bits": (np.float32, {"slot_dtype": "8bit", "slot_dtype_min_size": 0}),
        "weights in bfloat16, master": (ml_dtypes.bfloat16, {}),
    }
    runs = {}
    for name, (dtype, given) in options.items():
        optimizer = fv.optimizers.Adam(0.001, **given)
        optimizer.build([fv.Variable(np.linspace(0.5, 1, size).astype(dtype)) for _ in range(count)])
        gradients = [np.linspace(0.05, 0.15, size).astype(dtype) for _ in range(count)]
        runs[name] = stepping(optimizer, gradients)
    return {"shape": f"{count:,} x {size:,}", **figures(interleaved(runs, enough=enough))}


def stepping(optimizer: fv.Optimizer, gradients: list[Any]) -> Run:
    """Return a run of steps."""
    return repeated(lambda: optimizer.apply(gradients))


def checkpoints(task: Task, enough: float) -> Record:
    """Save or restore a training state in every way that is installed. A save ends on the disk."""
    doing, _, name = task.id.partition(" ")
    training = Training(CHECKPOINTS[name])
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for who, saver in savers(training).items():
            place = Path(folder, str(len(runs)))
            place.mkdir()
            saver.save(str(place))
            runs[who] = repeated(saving(saver.save, place) if doing == "save" else loading(saver.load, place))
        times = interleaved(runs, enough=enough)
    return {"bytes": training.nbytes, **figures(times)}


def saving(save: Callable[[str], object], place: Path) -> Callable[[], None]:
    """Return what saves into an empty folder."""

    def run() -> None:
        for path in place.iterdir():
            path.unlink()
        save(str(place))
        sync(str(place))

    return run


def loading(load: Callable[[str], object], place: Path) -> Callable[[], None]:
    """Return what loads from a folder."""
    return lambda: (load(str(place)), None)[1]


def job(task: Task, enough: float) -> Record:
    """Train with fastvar and without."""
    rounds = jobs.JOBS[task.id](enough)
    whole = {name: [all_ for all_, _ in took] for name, took in rounds.items()}
    shares = {name: median(inside / all_ for all_, inside in took) for name, took in rounds.items()}
    return {**figures(whole), "share of the optimizer": shares}


def resident(restart: bool = False) -> int:
    """Return the most memory that this process has had since the last restart, or 0 where nobody says."""
    try:
        if restart:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def free() -> int:
    """Return the bytes of memory that are free."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
