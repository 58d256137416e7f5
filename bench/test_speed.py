"""Steps of fastvar and of NumPy by pytest-benchmark, to compare commits of one machine.

    pytest bench/test_speed.py --benchmark-only --benchmark-group-by=param:case --benchmark-autosave
    pytest bench/test_speed.py --benchmark-only --benchmark-compare

`python -m bench run` measures more rivals, in turns, beside the limits.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.suite import smoke
from fastvar.benchmark.cases import Case
from fastvar.benchmark.contenders import FASTVAR, OUT, WRITTEN, contenders, threads

CASES = [task.case for task in smoke() if task.case]


@pytest.mark.parametrize("name", [FASTVAR, WRITTEN, OUT])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_step(case: Case, name: str, benchmark: Any) -> None:
    with threads(case.threads):
        step = contenders(case, [name])[name].step
        step()
        benchmark(step)
