"""Measure the cost of a call beyond arithmetic: `python bench/overhead.py`.

The parts of a step of one variable of 64 float32, each further variable, and `import fastvar`.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import repeat
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import fastvar as fv

ROUNDS = 201  # many and short, so that other processes disturb only few of them
CALLS = 100  # in a round
PROCESSES = 21
COUNTS = (1, 2, 10, 100, 300, 1000)  # variables


def per_call(*functions: Callable[[], object], calls: int = CALLS) -> list[float]:
    """Return the microseconds of a call of each function: medians over interleaved rounds."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, took in zip(functions, times, strict=True):
            function()
            start = perf_counter()
            for _ in repeat(None, calls):
                function()
            took.append((perf_counter() - start) / calls * 1e6)
    return [median(took) for took in times]


def prepared(count: int) -> tuple[fv.Optimizer, list[Any]]:
    optimizer = fv.optimizers.Adam()
    optimizer.build([fv.Variable(np.ones(64, np.float32)) for _ in range(count)])
    gradients = [np.full(64, 0.1, np.float32) for _ in range(count)]
    optimizer.apply(gradients)
    return optimizer, gradients


def one_variable(table: Table) -> None:
    optimizer, gradients = prepared(1)
    step_plan, lock = optimizer._plan, optimizer._turn
    assert step_plan is not None
    plan, hyper = step_plan.compiled, step_plan.hyper
    scalars = [optimizer.scalars(hyper[0], 1000)]

    def take_lock() -> None:
        with lock:
            pass

    def bound_run() -> None:
        plan.bind(gradients, False)
        plan.run(scalars, 1)

    whole, nothing, *parts, both = per_call(
        lambda: optimizer.apply(gradients),
        lambda: None,
        take_lock,
        lambda: plan.bind(gradients, False),
        lambda: [optimizer.scalars(h, 1000) for h in hyper],
        bound_run,
    )
    taken, bind, compute = (took - nothing for took in parts)
    run = both - nothing - bind
    rows = {
        "lock (one thread at a time)": taken,
        "bind (checks)": bind,
        "scalars": compute,
        "run (arithmetic, 64 elements)": run,
    }
    whole -= nothing
    table.add_row("apply, 1 variable of 64", f"{whole:.2f} µs")
    for name, took in {**rows, "rest (Python between them)": whole - sum(rows.values())}.items():
        table.add_row(f"    {name}", f"{took:.2f} µs")


def further_variables(table: Table) -> None:
    whole, compiled = [], []
    for count in COUNTS:
        optimizer, gradients = prepared(count)
        step_plan = optimizer._plan
        assert step_plan is not None
        scalars = [optimizer.scalars(step_plan.hyper[0], 1000)]

        def bind(plan: Any = step_plan.compiled, gradients: Any = gradients) -> None:
            plan.bind(gradients, False)

        def bound_run(plan: Any = step_plan.compiled, gradients: Any = gradients, scalars: Any = scalars) -> None:
            plan.bind(gradients, False)
            plan.run(scalars, 1)

        def apply(optimizer: Any = optimizer, gradients: Any = gradients) -> None:
            optimizer.apply(gradients)

        a, b, c = per_call(apply, bind, bound_run, calls=max(1, CALLS // count))
        whole.append(a)
        compiled.append(c - b)
    slope, arithmetic = (float(np.polyfit(COUNTS, took, 1)[0]) * 1e3 for took in (whole, compiled))
    table.add_row(f"each further variable of 64 (slope to {COUNTS[-1]:,})", f"{slope:.0f} ns")
    table.add_row("    of that, run (arithmetic)", f"{arithmetic:.0f} ns")
    table.add_row("    of that, the call", f"{slope - arithmetic:.0f} ns")


def process(statement: str, environment: dict[str, str]) -> tuple[float, float]:
    """Return the wall and processor milliseconds of a new interpreter that runs `statement`."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
    wall, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1e3, used * 1e3


def imports(table: Table) -> None:
    times: dict[str, list[tuple[float, float]]] = {"import numpy": [], "import fastvar": []}
    with tempfile.TemporaryDirectory() as folder:  # for bytecode, which an installed package has
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        process("import fastvar", environment)
        for _ in range(PROCESSES):
            for statement, took in times.items():
                took.append(process(statement, environment))
    medians = [[median(column) for column in zip(*took, strict=True)] for took in times.values()]
    for name, (wall, used) in zip(times, medians, strict=True):
        table.add_row(f"{name}, fresh process", f"{wall:.0f} ms ({used:.0f} ms of processor)")
    wall, used = (fastvar - numpy for numpy, fastvar in zip(*medians, strict=True))
    table.add_row("    fastvar beyond NumPy", f"{wall:.0f} ms ({used:.0f} ms of processor)")


def main() -> None:
    fv.set_num_threads(1)
    table = Table("Adam float32, 1 thread", title="Overhead: medians of interleaved rounds")
    table.add_column("takes", justify="right")
    one_variable(table)
    further_variables(table)
    imports(table)
    Console().print(table)


if __name__ == "__main__":
    main()
