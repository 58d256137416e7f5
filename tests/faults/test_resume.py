"""Runs that are killed at random instants, while they save in the background, end like undisturbed ones."""

import os

import pytest

from tests.faults import lab
from tests.support.cases import CASES


@pytest.mark.skipif(not lab.available, reason="faults are made by a library for Linux, with gcc")
def test_killed_runs_of_every_optimizer_resume_bit_for_bit():
    kills = max(3, int(os.environ.get("FASTVAR_KILLS", "0")) // 500)
    counts = lab.run("resumed runs", "every optimizer", kills)["counts"]
    assert counts.pop("resumed in the middle") > len(CASES) // 3
    assert counts == {"equal": len(CASES)}
