"""Pictures of measurements, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = (
    "#08519c",
    "#4292c6",
    "#9ecae1",
    "#756bb1",
    "#bf3a0a",
    "#ee854a",
    "#fdbe85",
    "#8c6d31",
    "#17a2b8",
    "#b8d430",
    "#31a354",
    "#a1d99b",
    "#dd3497",
    "#636363",
)
Ratios = Mapping[str, Mapping[str, float]]  # for each case, the times of the others divided by fastvar's


def processor() -> str:
    """Return the name of this machine's processor, if the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "this machine"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "this machine")


def bars(axes: Any, ratios: Ratios, title: str, order: Sequence[str] = ()) -> None:
    """Draw the ratios as groups of bars on a logarithmic scale; fastvar is the line at 1.

    Names in `order` have the same colours in all pictures.
    """
    names = list(dict.fromkeys(name for row in ratios.values() for name in row))
    width = 0.86 / max(1, len(names))
    for k, name in enumerate(names):
        places, heights = [], []
        for i, row in enumerate(ratios.values()):
            if name in row:
                places.append(i + (k - (len(names) - 1) / 2) * width)
                heights.append(row[name])
        drawn = axes.bar(
            places,
            heights,
            width,
            label=name,
            color=COLOURS[(order.index(name) if name in order else k) % len(COLOURS)],
        )
        labels = [f"{x:.3g}" if x < 10 else f"{x:.0f}" for x in heights]
        axes.bar_label(
            drawn, labels, fontsize=7 if width > 0.2 else 6, rotation=0 if width > 0.2 else 90, padding=2
        )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(ratios)), ratios, fontsize=8)
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter("{x:.3g}" if high < 10 * low else "")  # there may be no power of ten
    axes.set_ylabel("time / fastvar's time")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=1 if len(names) < 4 else 3)
    axes.spines[["top", "right"]].set_visible(False)


def figure(width: float = 8, height: float = 3.8) -> Any:
    """Return a new figure, which no window shows.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('a picture needs matplotlib: pip install "matplotlib>=3.9"') from error
    return Figure(figsize=(width, height), layout="constrained")


def write(drawn: Any, path: Path | str) -> None:
    """Write a figure; in SVG, text stays text and ids repeat."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastvar"}):
        svg = str(path).endswith(".svg")
        drawn.savefig(path, **({"metadata": {"Date": None}} if svg else {"dpi": 150}))
