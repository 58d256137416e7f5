"""Run the command line in this process, and read its tables."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fastvar import __main__ as main


def run(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    """Return the exit code, and what was printed to standard output and standard error."""
    old, sys.argv = sys.argv, ["fastvar", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as end:
            main.main()
    finally:
        sys.argv = old
    return int(end.value.code or 0), *capsys.readouterr()


def cells(out: str) -> list[list[str]]:
    """Return the rows of a printed table, split at two or more spaces."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
