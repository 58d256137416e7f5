"""The pictures of a report. Each function returns a figure, or None if the run has nothing for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from bench.tasks import LIMITS
from fastvar.benchmark.contenders import FASTVAR, NAMES
from fastvar.benchmark.picture import COLOURS, bars, figure

Record = dict[str, Any]


def sizes(records: Sequence[Record]) -> Any:
    """Draw the time of Adam against the size of one variable, with both limits."""
    of_one = [
        r for r in steps(records, threads=1) if (r["rule"], r["dtype"], r["variables"]) == ("adam", "float32", 1)
    ]
    if len(of_one) < 3:
        return None
    of_one.sort(key=lambda r: r["elements"])
    drawn = figure(8, 4.5)
    axes = drawn.subplots()
    names = dict.fromkeys(name for r in of_one for name in r["seconds"])
    for name in names:
        points = [(r["elements"], r["seconds"][name] * 1e6) for r in of_one if name in r["seconds"]]
        if name in LIMITS:
            style: dict[str, Any] = {
                "color": "black",
                "linestyle": ":" if name == LIMITS[0] else "--",
                "linewidth": 1,
            }
        else:
            style = {"color": COLOURS[NAMES.index(name)], "marker": "."}
        axes.plot(*zip(*points, strict=True), label=name, **style | {"zorder": 3 if name == FASTVAR else 2})
    axes.set(xscale="log", yscale="log", xlabel="elements of one variable", ylabel="µs a step")
    axes.xaxis.get_major_locator().set_params(numticks=12)
    return finished(drawn, axes, "Time of a step of Adam, float32, one thread")


def speedups(records: Sequence[Record]) -> Any:
    """Draw how many times as long the rivals take, a panel for each rule."""
    by_rule: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for r in steps(records, threads=1):
        rivals = {name: x for name, x in r["ratios"].items() if name not in LIMITS}
        if len(rivals) > 2 and r["dtype"] == "float32":
            by_rule[r["rule"]][r["shape"]] = rivals
    title = "One step of {}, float32, one thread"
    return panels(by_rule, title, "time / fastvar's time") if by_rule else None


def panels(by_rule: Any, title: str, label: str) -> Any:
    """Draw ratios by shape, a panel for each rule."""
    drawn = figure(11, 4 * len(by_rule))
    for axes, (rule, rows) in zip(drawn.subplots(len(by_rule), squeeze=False)[:, 0], by_rule.items(), strict=True):
        bars(axes, rows, title.format(rule), NAMES)
        axes.set_xlabel("variables x elements", fontsize=9)
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def threads(records: Sequence[Record]) -> Any:
    """Draw the time on all threads, in times of one thread's."""
    return beside(records, lambda r: r["threads"] > 1, -1, "Time on all threads, in times of one thread's")


def contention(records: Sequence[Record]) -> Any:
    """Draw the time beside a process that only counts, in times of the time without it."""
    return beside(
        records, lambda r: r["contended"], -2, "Time beside another busy process, in times of a quiet machine's"
    )


def beside(records: Sequence[Record], chosen: Any, part: int, title: str) -> Any:
    """Draw the times of chosen records in times of those that differ in one part of their names."""
    quiet = {r["id"]: r for r in steps(records)}
    by_rule: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for r in steps(records, contended=None):
        parts = r["id"].split("-")
        base = quiet.get("-".join(parts[:-1]) if part == -2 else "-".join([*parts[:-1], "1thr"]))
        if chosen(r) and base is not None and base is not r and r["contended"] == (part == -2):
            names = [name for name in r["seconds"] if name in base["seconds"] and name not in LIMITS]
            by_rule[r["rule"]][r["shape"]] = {n: r["seconds"][n] / base["seconds"][n] for n in names}
    return panels(by_rule, f"{title}: {{}}", "times as long") if by_rule else None


def formats(records: Sequence[Record]) -> Any:
    """Draw the time with other storage formats, in times of float32's."""
    return grouped(records, "formats", "Adam with other storage formats", "time / float32's time")


def jobs(records: Sequence[Record]) -> Any:
    """Draw the time of whole trainings without fastvar."""
    return grouped(records, "job", "Whole trainings without fastvar", "time / time with fastvar")


def checkpoints(records: Sequence[Record]) -> Any:
    """Draw the time of saving and restoring in other ways."""
    return grouped(records, "checkpoint", "Saving and restoring", "time / fastvar's time")


def grouped(records: Sequence[Record], kind: str, title: str, label: str) -> Any:
    """Draw the ratios of the records of a kind as bars."""
    rows = {r["id"].replace(" ", "\n", 1): r["ratios"] for r in records if r["kind"] == kind and r.get("ratios")}
    if not rows:
        return None
    drawn = figure(9, 4)
    axes = drawn.subplots()
    bars(axes, rows, title)
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def roofline(records: Sequence[Record]) -> Any:
    """Draw elements a second against the bytes that a rule moves for each, under the roof of memory."""
    of_one = [r for r in steps(records, threads=1) if r["variables"] == 1 and LIMITS[0] in r["seconds"]]
    large = [r for r in of_one if r["elements"] == 2**24 and r["dtype"] == "float32"]
    if not large:
        return None
    drawn = figure(8, 4.5)
    axes = drawn.subplots()
    rates = [r["bytes"] / r["seconds"][LIMITS[0]] / 1e9 for r in large]
    per = sorted({r["bytes"] / r["elements"] for r in large})
    span = [per[0] / 1.5, per[-1] * 1.5]
    axes.plot(
        span, [max(rates) / x for x in span], color="black", linewidth=1, label=f"memory, {max(rates):.3g} GB/s"
    )
    for name, style in ((LIMITS[1], "--"),):
        works = [r["elements"] / r["seconds"][name] / 1e9 for r in large if name in r["seconds"]]
        if works:
            axes.axhline(max(works), color="black", linestyle=style, linewidth=1, label="a root and a division")
    for k, r in enumerate(large):
        place = r["bytes"] / r["elements"], r["elements"] / r["seconds"][FASTVAR] / 1e9
        axes.plot(*place, "o", color=COLOURS[k % len(COLOURS)])
        axes.annotate(r["rule"], place, textcoords="offset points", xytext=(6, -10), fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="bytes moved for each element", ylabel="10^9 elements a second")
    axes.xaxis.set_major_formatter("{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter("{x:.3g}")
    axes.yaxis.set_major_formatter("{x:g}")
    return finished(drawn, axes, "fastvar under the roof: 2^24 elements, float32, one thread")


def finished(drawn: Any, axes: Any, title: str) -> Any:
    """Give a figure a title and a legend."""
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def steps(records: Iterable[Record], threads: int | None = None, contended: bool | None = False) -> list[Record]:
    """Return the records of steps with a number of threads, on a quiet or a contended machine, or any."""
    found = [r for r in records if r["kind"] == "step" and threads in (None, r["threads"])]
    return [r for r in found if contended in (None, r["contended"])]


PICTURES = (sizes, speedups, threads, contention, formats, checkpoints, jobs, roofline)
