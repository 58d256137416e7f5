"""The command line (layer 9): `python -m fastvar info`."""

from __future__ import annotations

import argparse
import platform

import numpy as np

import fastvar
from fastvar import kernels


def info() -> str:
    """Return what runs here: versions, instruction sets, threads."""
    openmp = "OpenMP" if kernels.active.openmp() else "none (a serial build: every step runs on one thread)"
    rows = {
        "fastvar": fastvar.__version__,
        "NumPy": np.__version__,
        "Python": f"{platform.python_version()} on {platform.machine()}",
        "instruction set": f"{kernels.isa} (this processor runs {', '.join(kernels.supported())})",
        "threads": f"{fastvar.get_num_threads()}, by {openmp}",
        "rules": ", ".join(kernels.RULES),
    }
    return "\n".join(f"{name:16} {value}" for name, value in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastvar", description=fastvar.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what runs here: versions, instruction sets, threads")
    parser.parse_args()
    print(info())


if __name__ == "__main__":
    main()
