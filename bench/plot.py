"""Plot a step of Adam against NumPy and PyTorch, on one thread, in docs/speed.svg: `python -m bench.plot`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.cases import ALGORITHMS, SHAPES, Case
from bench.contenders import FASTVAR, OUT, TORCH, WRITTEN, contenders, threads
from bench.measure import interleaved, ratio

OTHERS = {WRITTEN: "NumPy", OUT: "NumPy with out=", TORCH: "PyTorch (fused)"}
COLOURS = ("#9ecae1", "#4292c6", "#ee854a")
TARGET = Path(__file__).parent.parent / "docs" / "speed.svg"
Ratios = dict[str, dict[str, float]]  # for each shape, the times of the others divided by fastvar's


def measured(shapes: Sequence[tuple[int, int]] = SHAPES, rounds: int = 41) -> Ratios:
    """Return the ratios for each shape. Unlike times, they hold on a noisy machine."""
    (adam,) = (each for each in ALGORITHMS if each.name == "adam")
    found: Ratios = {}
    for variables, elements in shapes:
        runs = {
            name: run for name, (run, _) in contenders(Case(adam, "float32", (variables, elements), 1)).items()
        }
        with threads(1):
            times = interleaved({name: runs[name] for name in (FASTVAR, *OTHERS)}, rounds)
        found[f"{variables:,} x {elements:,}"] = {name: ratio(times[name], times[FASTVAR]) for name in OTHERS}
    return found


def processor() -> str:
    """Return the name of this machine's processor, if the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "this machine"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "this machine")


def draw(ratios: Mapping[str, Mapping[str, float]], target: Path) -> None:
    """Draw the ratios as groups of bars on a logarithmic scale; fastvar is the line at 1."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(OTHERS)
    for k, (name, label) in enumerate(OTHERS.items()):
        heights = [row[name] for row in ratios.values()]
        places = [i + (k - 1) * width for i in range(len(heights))]
        bars = axes.bar(places, heights, width, label=label, color=COLOURS[k])
        axes.bar_label(bars, fmt=lambda x: f"{x:.3g}" if x < 10 else f"{x:.0f}", fontsize=7)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(ratios)), ratios, fontsize=8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("time / fastvar's time")
    axes.set_title(f"One step of Adam, float32, one thread of {processor()}", fontsize=10)
    axes.set_xlabel("variables x elements", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastvar"}):  # text stays text, ids repeat
        figure.savefig(target, metadata={"Date": None})


def main(target: Path) -> None:
    ratios = measured()
    draw(ratios, target)
    print(f"{target}: {ratios}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
