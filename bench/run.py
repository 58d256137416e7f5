"""Measure the tasks of a set, and append a record of each to a file of JSON lines.

A number of threads has a process of its own, with as many processors: libraries that cannot be told use no more.
Tasks that the file has are skipped, so a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import fastvar as fv
from bench.suite import SETS, Task
from fastvar.benchmark.contenders import processors
from fastvar.benchmark.in_keras import choose_backend
from fastvar.benchmark.picture import processor
from fastvar.kernels import isa

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]


def machine() -> Record:
    """Return what the figures depend on."""
    versions = {"fastvar": fv.__version__, "NumPy": np.__version__, "Python": platform.python_version()}
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    system = f"{platform.system()} {platform.machine()}"
    return {
        "processor": processor(),
        "isa": isa,
        "processors": fv.threads.usable(),
        "system": system,
        "at": now,
    } | {"versions": versions}


def read(path: Path) -> list[Record]:
    """Return the records of a file; a line that a kill has cut off is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append(path: Path, record: Record) -> None:
    """Add a record as a line of its own."""
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut + json.dumps(record) + "\n")


def unfinished(which: str, only: str, path: Path) -> list[Task]:
    """Return the tasks of a set, of those with `only` in their names, that the file lacks."""
    done = {record.get("id") for record in read(path)}
    return [task for task in SETS[which]() if only in task.id and task.id not in done]


def work(which: str, only: str, path: Path, count: int, enough: float) -> None:
    """Measure what is left of a set on a number of threads, in this process."""
    tasks = [task for task in unfinished(which, only, path) if task.threads == count]
    with processors(count):
        from bench.tasks import measured

        for number, task in enumerate(tasks, 1):
            print(f"[{number} of {len(tasks)}, {count} threads] {task.id}", file=sys.stderr, flush=True)
            append(path, measured(task, enough))


def run(which: str, only: str, path: Path, enough: float) -> int:
    """Measure what is left of a set; a task that ends its process is recorded as failed, and the rest goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not read(path):
        append(path, {"machine": machine()})
    choose_backend()
    env = {**os.environ}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    failed = 0
    while left := unfinished(which, only, path):
        task = left[0]
        command = [sys.executable, "-W", "ignore", "-m", "bench", "work", which, "--threads", str(task.threads)]
        command += ["--json", str(path.resolve()), "--enough", str(enough), "--only", only]
        code = subprocess.run(command, check=False, env=env).returncode
        same = [each for each in unfinished(which, only, path) if each.threads == task.threads]
        if code and same:
            failed += 1
            append(path, {"id": same[0].id, "failed": f"its process ended with code {code}"})
    return 1 if failed else 0
