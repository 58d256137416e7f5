"""A minute of measurements for the machine of a user: `fastvar bench`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

from fastvar import tables
from fastvar.benchmark.cases import RULES, Case
from fastvar.benchmark.contenders import FASTVAR, NAMES, attempt, supporting, threads
from fastvar.benchmark.contest import repeated
from fastvar.benchmark.measure import interleaved, ratio
from fastvar.benchmark.picture import bars, figure, processor, write

SHAPES = ((1, 64), (1000, 64), (200, 1000), (1, 2**16), (1, 2**20), (1, 2**24))  # variables x elements
COMPILED = ("torch compiled", "DeepSpeed")  # which takes longer than measuring
COMMON = tuple(name for name in NAMES if name not in COMPILED)


class Row(NamedTuple):
    """The time of a step of fastvar, the times of the others divided by it, and why some could not be measured."""

    case: Case
    seconds: float
    ratios: dict[str, float]
    failed: dict[str, str]


def cases(rules: Sequence[str], count: int) -> list[Case]:
    """Return the cases of these rules on `count` threads."""
    return [
        Case(RULES[name], "float32", shape, count)
        for name in rules
        for shape in SHAPES
        if shape[0] * shape[1] <= RULES[name].large[1]
    ]


def measured(given: Sequence[Case], names: Sequence[str], seconds: float) -> Iterator[Row]:
    """Measure each case, all of them in about `seconds`."""
    for case in given:
        with threads(case.threads):
            made = {each.name: attempt(each, case) for each in supporting(case, names)}
            failed = {name: one for name, one in made.items() if isinstance(one, str)}
            runs = {name: repeated(one.step) for name, one in made.items() if not isinstance(one, str)}
            each = seconds / len(given) / 2  # the other half: making arrays, first steps
            times = interleaved(runs, seconds=min(0.005, each / 40 / len(runs)), enough=each)
        base = times.pop(FASTVAR)
        yield Row(case, median(base), {name: ratio(took, base) for name, took in times.items()}, failed)


def draw(rows: Sequence[Row], path: str) -> None:
    """Draw a panel of bars for each rule into a file."""
    rules = list(dict.fromkeys(row.case.algorithm.name for row in rows))
    drawn = figure(8, 3.4 * len(rules))
    panels: Any = drawn.subplots(len(rules), squeeze=False)[:, 0]
    for axes, rule in zip(panels, rules, strict=True):
        of_rule = [row for row in rows if row.case.algorithm.name == rule]
        count = of_rule[0].case.threads
        title = f"One step of {rule}, float32, {tables.count(count, 'thread')} of {processor()}"
        bars(axes, {row.case.of_shape: row.ratios for row in of_rule}, title, NAMES[1:])
        axes.set_xlabel("variables x elements", fontsize=9)
    write(drawn, path)
