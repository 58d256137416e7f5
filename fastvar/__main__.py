"""The command line: `fastvar info | plot-schedule SCHEDULE | inspect FILE | ...`, or `python -m fastvar`."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import textwrap
from collections.abc import Callable

import numpy as np

import fastvar
from fastvar import kernels
from fastvar.cli import bench, ending, files, screen
from fastvar.cli.parsing import Parser
from fastvar.schedules.notation import parse


def _info(given: argparse.Namespace) -> int:
    """Show versions, instruction sets and threads of this installation."""
    rows = {
        "fastvar": fastvar.__version__,
        "NumPy": np.__version__,
        "Python": f"{platform.python_version()} on {platform.machine()}",
        "instruction set": f"{kernels.isa} (this processor runs {', '.join(kernels.supported())})",
        "threads": f"{fastvar.get_num_threads()} of at most {fastvar.threads.usable()} that this process may use; "
        "our own, without OpenMP",
        "rules": ", ".join(kernels.RULES),
    }
    for name, value in rows.items():
        screen.say(f"{name:16} {value}", indent=" " * 17)
    return ending.FINE


def _plot_schedule(given: argparse.Namespace) -> int:
    """Draw a schedule to a file, or else in a window if there is a display."""
    schedule = parse(given.schedule)
    if given.output is not None:  # no window: do not look for a display
        os.environ.setdefault("MPLBACKEND", "agg")
    figure = schedule.plot(given.steps).figure
    if given.output is None and figure.canvas.required_interactive_framework is not None:
        from matplotlib import pyplot

        pyplot.show()
        screen.say(repr(schedule))
        return ending.FINE
    path = given.output or "schedule.png"
    figure.savefig(path, dpi=150)
    screen.say(f"{schedule!r}: {path}")
    return ending.FINE


def _help(given: argparse.Namespace) -> int:
    screen.write(given.parser.format_help().rstrip())
    return ending.TROUBLE


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = Parser(
        prog="fastvar",
        description=textwrap.fill(str(fastvar.__doc__)),
        epilog=ending.CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", "-V", action="version", version=f"fastvar {fastvar.__version__}")
    whole.set_defaults(run=_help, parser=whole)
    commands = whole.add_subparsers(metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], purpose: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(
            name,
            help=purpose,
            description=textwrap.fill(f"{purpose[0].upper()}{purpose[1:]}."),
            epilog=ending.CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run, parser=command)
        return command

    add("info", _info, "show versions, instruction sets and threads")
    plot = add("plot-schedule", _plot_schedule, "draw a schedule that is written in Python")
    plot.add_argument("schedule", help="such as 'CosineDecay(0.1, decay_steps=1000)'; may be nested")
    plot.add_argument("--steps", type=int, metavar="N", help="how many iterations to draw")
    plot.add_argument("--output", metavar="FILE.png", help="default: a window; without a display, schedule.png")
    files.add_to(add)
    bench.add_to(add)
    return whole


def main() -> None:
    """Run the command line."""
    sys.exit(ending.run(parser()))


if __name__ == "__main__":
    main()
