"""Figures of matplotlib, which is imported when one is drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_INK = "#010203"  # stands for the colour of the text on the page


def axes(owner: str) -> Any:
    """Return the axes of a new figure of pyplot.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f'{owner}: plot needs matplotlib: pip install "matplotlib>=3.9"') from error
    return pyplot.subplots(figsize=(8, 4.5), layout="constrained")[1]


def label_steps(ax: Any) -> None:
    """Make the horizontal axis one of steps, with ticks at whole numbers, unless the caller has set the ticks."""
    from matplotlib.ticker import MaxNLocator

    ax.set(xlabel="step")
    if isinstance(locator := ax.xaxis.get_major_locator(), MaxNLocator):
        locator.set_params(integer=True)


def svg(draw: Callable[[Any], object]) -> str:
    """Return what `draw` draws into axes as SVG. It is transparent, and its text has the colour of the page's.

    Letters are drawn as shapes: in a notebook that it does not trust, such as somebody else's, JupyterLab shows
    nothing of an SVG but its text.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "path", "legend.framealpha": 0.0}
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=_NO_METADATA)
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
