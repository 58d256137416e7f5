"""How many threads a step uses: settings, environment variables, quotas, threadpoolctl."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import fastvar as fv
from fastvar import threads
from tests.support.processes import output, run

COUNT = "import fastvar; print(fastvar.get_num_threads())"


def test_thread_count_comes_from_the_environment() -> None:
    assert output(COUNT) == str(len(os.sched_getaffinity(0)))
    assert output(COUNT, OMP_NUM_THREADS="3") == "3"
    assert output(COUNT, FASTVAR_NUM_THREADS="5") == "5"
    assert output(COUNT, FASTVAR_NUM_THREADS="1", OMP_NUM_THREADS="3") == "1"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"self": "0::/a/b\n", "a/b/cpu.max": "max 100000\n"}, None),
        ({"self": "0::/a/b\n", "a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ({"self": "0::/\n", "cpu.max": "50000 100000\n"}, 1),
        ({"self": "0::/../a\n", "cpu.max": "100000 100000\n"}, 1),
        ({"self": "3:cpu,cpuacct:/c\n", "cpu,cpuacct/c/cpu.cfs_quota_us": "-1\n"}, None),
        (
            {
                "self": "4:memory:/c\n3:cpu,cpuacct:/c/d\n0::/\n",
                "cpu,cpuacct/c/cpu.cfs_quota_us": "150000\n",
                "cpu,cpuacct/c/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        ({"self": "3:cpu:/c\n", "cpu/c/cpu.cfs_quota_us": "9000000\n", "cpu/c/cpu.cfs_period_us": "1\n"}, None),
        ({"self": "nonsense"}, None),
        ({}, None),
    ],
)
def test_usable_processors_are_within_the_quota(
    files: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    count = threads.usable(tmp_path / "self", tmp_path)
    assert count == (len(os.sched_getaffinity(0)) if expected is None else expected)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "", "100000000"])
def test_bad_thread_count_in_the_environment_is_an_import_error(value: str) -> None:
    done = run(COUNT, FASTVAR_NUM_THREADS=value)
    assert done.returncode == 1
    assert f"ImportError: fastvar: FASTVAR_NUM_THREADS must be a whole number >= 1, got {value!r}" in done.stderr


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-1, ValueError), (2**40, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_bad_thread_count_is_refused_and_kept(count: Any, error: type[Exception]) -> None:
    before = fv.get_num_threads()
    with pytest.raises(error, match="set_num_threads: count must be"):
        fv.set_num_threads(count)
    assert fv.get_num_threads() == before


def test_threadpoolctl_sees_and_limits() -> None:
    pytest.importorskip("threadpoolctl")
    code = """
import fastvar as fv, threadpoolctl
assert [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "fastvar"] == [3]
counts = []
for chosen in (None, 4):
    if chosen:
        fv.set_num_threads(chosen)
    for limit in (1, 2, 3):
        with threadpoolctl.threadpool_limits(limit):
            counts.append(fv.get_num_threads())
    counts.append(fv.get_num_threads())
print(counts)
"""
    assert output(code, OMP_NUM_THREADS="3") == "[1, 2, 3, 3, 1, 2, 3, 4]"


def test_get_returns_what_was_set() -> None:
    for count in (1, 2, 3):
        fv.set_num_threads(count)
        assert fv.get_num_threads() == count
