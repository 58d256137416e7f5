"""Print a table after the benchmarks; with `--markdown FILE`, also write it there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from bench.cases import Case
from bench.contenders import FASTVAR, LIMIT, OUT, TORCH, WRITTEN

os.environ["KERAS_BACKEND"] = "numpy"  # before anything imports Keras

COLUMNS = ("case", "fastvar", "GB/s", "x NumPy", "x NumPy out=", "of traffic limit", "x torch")
Report = dict[Case, dict[str, float]]
REPORT = pytest.StashKey[Report]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--markdown", type=Path, metavar="FILE", help="write the benchmarks' table to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = {}
    config.option.benchmark_quiet = True  # our own table has the ratios


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]


def duration(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def cells(case: Case, row: dict[str, float]) -> list[str]:
    def times(name: str, form: str) -> str:
        value = row.get(f"{name} / {FASTVAR}")
        return "-" if value is None else format(value, form)

    return [
        str(case),
        duration(row[f"{FASTVAR}, s"]),
        f"{row['GB/s']:.3g}",
        *(times(name, ".3g") for name in (WRITTEN, OUT)),
        times(LIMIT, ".2f"),
        times(TORCH, ".3g"),
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = [cells(case, row) for case, row in config.stash[REPORT].items()]
    if not rows:
        return
    table = Table(title="x: how many times as long the other takes; of traffic limit: 1.00 cannot be beaten")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=124).print(table)
    if config.option.markdown:
        lines = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *rows]
        config.option.markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")
