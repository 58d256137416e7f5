"""The command line: `python -m fastvar info | plot-schedule SCHEDULE | inspect FILE | ...`."""

from __future__ import annotations

import argparse
import os
import platform
import sys

import numpy as np

import fastvar
from fastvar import cli, kernels
from fastvar.schedules.notation import parse


def info() -> str:
    """Return versions, instruction sets and threads of this installation."""
    rows = {
        "fastvar": fastvar.__version__,
        "NumPy": np.__version__,
        "Python": f"{platform.python_version()} on {platform.machine()}",
        "instruction set": f"{kernels.isa} (this processor runs {', '.join(kernels.supported())})",
        "threads": f"{fastvar.get_num_threads()} of at most {fastvar.threads.usable()} that this process may use",
        "rules": ", ".join(kernels.RULES),
    }
    return "\n".join(f"{name:16} {value}" for name, value in rows.items())


def plot_schedule(expression: str, steps: int | None, output: str | None) -> str:
    """Draw a schedule to `output`, or else in a window if there is a display. Return what was done."""
    schedule = parse(expression)
    if output is not None:  # no window: do not look for a display
        os.environ.setdefault("MPLBACKEND", "agg")
    figure = schedule.plot(steps).figure
    if output is None and figure.canvas.required_interactive_framework is not None:
        from matplotlib import pyplot

        pyplot.show()
        return repr(schedule)
    path = output or "schedule.png"
    figure.savefig(path, dpi=150)
    return f"{schedule!r}: {path}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastvar", description=fastvar.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="show versions, instruction sets and threads")
    plot = commands.add_parser("plot-schedule", help="draw a schedule that is written in Python")
    plot.add_argument("schedule", help="such as 'CosineDecay(0.1, decay_steps=1000)'; may be nested")
    plot.add_argument("--steps", type=int, help="how many iterations to draw")
    plot.add_argument("--output", metavar="FILE.png", help="default: a window; without a display, schedule.png")
    cli.add_to(commands)
    given = parser.parse_args()
    if "run" in given:
        sys.exit(cli.run(given))
    if given.command == "info":
        print(info())
        return
    try:
        print(plot_schedule(given.schedule, given.steps, given.output))
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.exit(2, f"{parser.prog} {given.command}: {error}\n")


if __name__ == "__main__":
    main()
