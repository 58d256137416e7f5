"""What the suite measures: steps, storage formats, checkpoints and whole jobs, by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import NamedTuple

from fastvar import threads
from fastvar.benchmark.cases import CLIP_DECAY_EMA, RULES, Algorithm, Case, Network
from fastvar.benchmark.contenders import FASTVAR, NAMES, OUT

DTYPES = ("float32", "float64")
SHAPES = ((1, 64), (1000, 64), (200, 1000), (1, 2**20), (1, 2**24))  # variables x elements
SIZES = tuple((1, 2**power) for power in range(0, 27, 2))
BUSY = ((200, 1000), (1, 2**20))
FEW = (FASTVAR, OUT, "torch fused")
FORMATS = ((200, 1000), (1, 2**24))
CHECKPOINTS = {"2,000 tensors of 64": [64] * 667, "100 MB": [2**20] * 8}  # elements of variables, with two moments
JOBS = ("digits", "sklearn", "keras", "cnn", "transformer")


class Task(NamedTuple):
    """One measurement: everything that is compared in it takes turns."""

    kind: str  # step, formats, checkpoint, job
    id: str
    threads: int
    case: Case | None = None
    contended: bool = False
    names: tuple[str, ...] = NAMES  # the contenders


def networks() -> dict[str, Network]:
    """Return the networks in bench/networks, by name."""
    paths = sorted((Path(__file__).parent / "networks").glob("*.json"))
    read = {path.stem: json.loads(path.read_text())["tensors"] for path in paths}
    return {name: Network(name, tuple(map(tuple, tensors))) for name, tensors in read.items()}


def step(
    rule: Algorithm,
    dtype: str,
    shape: tuple[int, int] | Network,
    count: int,
    contended: bool = False,
    names: tuple[str, ...] = NAMES,
) -> Task:
    """Return the task of a step."""
    case = Case(rule, dtype, shape, count)
    return Task("step", case.id + "-busy" * contended, count, case, contended, names)


def counts() -> list[int]:
    """Return 1 and the number of threads that this process may use."""
    return sorted({1, threads.usable()})


def smoke() -> list[Task]:
    """Return what CI measures in a minute."""
    given = [("adam", (1, 64)), ("adam", (200, 1000)), ("adam", (1, 2**20)), ("sgd", (1000, 64))]
    return [step(RULES[name], "float32", shape, 1, names=FEW) for name, shape in given]


def standard() -> list[Task]:
    """Return what `make bench` measures."""
    three = [RULES[name] for name in ("adam", "sgd", CLIP_DECAY_EMA.name)]
    return unique(
        [
            *(step(rule, "float32", shape, count) for count, rule, shape in product(counts(), three, SHAPES)),
            *(step(RULES["adam"], "float32", shape, 1, names=FEW) for shape in SIZES),
            *(step(RULES["adam"], "float32", shape, counts()[-1], True, FEW) for shape in BUSY),
            *others(),
        ]
    )


def everything() -> list[Task]:
    """Return every combination, the standard ones first."""
    shapes = [*SHAPES, *SIZES, *networks().values()]
    given = product(counts(), (False, True), DTYPES, RULES.values(), shapes)
    return unique([*standard(), *(step(r, d, s, n, busy) for n, busy, d, r, s in given if fits(r, s))])


def fits(rule: Algorithm, shape: tuple[int, int] | Network) -> bool:
    """Return whether a rule has no limit of size, or the shape is within it."""
    return isinstance(shape, Network) or rule.large == Algorithm.large or prod(shape) <= prod(rule.large)


def others() -> Iterator[Task]:
    """Return the tasks that are not steps of a rule."""
    for count in counts():
        yield from (Task("formats", f"formats-{n}x{size}-{count}thr", count) for n, size in FORMATS)
    for name, doing in product(CHECKPOINTS, ("save", "restore")):
        yield Task("checkpoint", f"{doing} {name}", counts()[-1])
    yield from (Task("job", job, counts()[-1]) for job in JOBS)


def unique(tasks: list[Task]) -> list[Task]:
    """Return the first task with each name."""
    return [*{task.id: task for task in reversed(tasks)}.values()][::-1]


SETS = {"smoke": smoke, "standard": standard, "all": everything}
