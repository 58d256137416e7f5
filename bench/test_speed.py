"""Measure every case. conftest.py prints the table at the end."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest

from bench.cases import CASES, Case
from bench.contenders import FASTVAR, contenders, threads
from bench.measure import calibrated, interleaved, ratio


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_speed(case: Case, benchmark: Any, report: dict[Case, dict[str, float]]) -> None:
    with threads(case.threads):
        runs = {name: run for name, (run, _) in contenders(case).items()}
        times = interleaved(runs)
        # The ratios come from interleaved rounds. pytest-benchmark measures one callable at a time, while the
        # machine may change; its figure for fastvar is for --benchmark-compare.
        number = calibrated(runs[FASTVAR], 0.02)
        benchmark.pedantic(runs[FASTVAR], args=(1,), rounds=5, iterations=number)
    row = {f"{name}, s": median(took) for name, took in times.items()}
    row |= {f"{name} / fastvar": ratio(took, times[FASTVAR]) for name, took in times.items() if name != FASTVAR}
    row["GB/s"] = case.bytes / row[f"{FASTVAR}, s"] / 1e9
    benchmark.extra_info.update(row)
    report[case] = row
