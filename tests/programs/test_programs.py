"""Random programs over the public API have the same results, bit for bit, however they are run.

`FASTVAR_PROGRAMS=10000` (`make soak`) runs 10,000 instead of 100.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastvar import kernels

PROGRAMS = int(os.environ.get("FASTVAR_PROGRAMS", "100"))
BATCH = 100  # programs in one process
WAYS = [
    ("reference", 1, False),
    *((isa, 0, True) for isa in kernels.supported()),
    (kernels.supported()[-1], 2, False),
]


def digests(first: int, count: int, isa: str, threads: int, trips: bool) -> list[str]:
    """Run programs in a process of their own. It checks that failed steps and round trips change nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs", *map(str, (first, count, threads, int(trips)))],
        env={**os.environ, "FASTVAR_ISA": isa},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, f"{isa}, {threads} threads, trips {trips}:\n{done.stderr}"
    return done.stdout.splitlines()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(0, PROGRAMS, BATCH))
def test_programs_come_out_the_same_however_they_run(first: int) -> None:
    count = min(BATCH, PROGRAMS - first)
    (_, expected), *others = [(way, digests(first, count, *way)) for way in WAYS]
    assert len(expected) == 40 * count
    for way, lines in others:
        different = [(ours, theirs) for ours, theirs in zip(lines, expected, strict=True) if ours != theirs]
        assert not different, f"{way}: {different[0]}"


def test_programs_do_what_they_are_for() -> None:
    """Most operations succeed, and those that must fail do."""
    endings = [line.split()[3] for line in digests(0, 30, kernels.isa, 1, False)]
    assert 0.5 < endings.count("done") / len(endings) < 0.9
    assert {"ValueError", "TypeError", "ArithmeticError"} < set(endings)
