"""`fastvar bench`: a table, JSON and a picture of this machine, and its mistakes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fastvar.benchmark import contenders, quick
from tests.support.commands import run

FEW = ("--rules", "adam", "sgd", "--rivals", "NumPy", "--seconds", "0.1")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "SHAPES", ((1, 4), (3, 8)))


def test_the_table(capsys: Any) -> None:
    code, out, err = run(capsys, "bench", *FEW)
    assert (code, err) == (0, "")
    head, _, *lines = out.splitlines()
    assert head.split() == ["case", "fastvar", "GB/s", "x", "NumPy"]
    assert [line.partition(",")[0] for line in lines[:4]] == [
        f"{rule} float32 {shape}" for rule in ("adam", "sgd") for shape in ("1 x 4", "3 x 8")
    ]


def test_json_and_picture(capsys: Any, tmp_path: Path) -> None:
    code, out, err = run(capsys, "bench", *FEW, "--json", "--picture", tmp_path / "speed.svg")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["steps"]) == 4
    assert all(row["seconds"] > 0 and [*row["times as long"]] == ["NumPy"] for row in found["steps"])
    drawn = (tmp_path / "speed.svg").read_text()
    assert all(f"One step of {rule}" in drawn for rule in ("adam", "sgd"))


def test_rivals_that_are_not_installed_are_named(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    every = (*contenders.EVERY[:2], contenders.EVERY[3]._replace(needs="no_such_module"))
    monkeypatch.setattr(contenders, "EVERY", every)
    _, out, _ = run(capsys, "bench", "--seconds", "0.1", "--rivals", "NumPy", "numba")
    assert "not installed: numba" in out


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_rivals_have_as_many_processors_as_threads(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, had = os.sched_getaffinity(0), []
    numpy = contenders.EVERY[1]
    spy = numpy._replace(prepare=lambda case: had.append(os.sched_getaffinity(0)) or numpy.prepare(case))
    monkeypatch.setattr(contenders, "EVERY", (contenders.EVERY[0], spy))
    assert run(capsys, "bench", "--seconds", "0.1", "--rivals", "NumPy")[0] == 0
    assert {len(each) for each in had} == {1}
    assert os.sched_getaffinity(0) == before


def test_rivals_that_fail_are_named(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(case: Any) -> Any:
        raise ModuleNotFoundError("No module named 'backend'")

    every = (*contenders.EVERY[:2], contenders.EVERY[2]._replace(prepare=prepare))
    monkeypatch.setattr(contenders, "EVERY", every)
    few = ("bench", "--seconds", "0.1", "--rivals", "NumPy", "NumPy out=")
    code, out, err = run(capsys, *few)
    assert code == 0, err
    assert "NumPy out= failed: ModuleNotFoundError: No module named 'backend'" in out
    assert out.splitlines()[0].rstrip().endswith("x NumPy")
    assert json.loads(run(capsys, *few, "--json")[1])["failed"].keys() == {"NumPy out="}


def test_mistakes(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean adan?" in run(capsys, "bench", "--rules", "adan_")[2]
    assert "must be from 1 to" in run(capsys, "bench", "--threads", "0")[2]
    assert "must be above 0" in run(capsys, "bench", "--seconds", "0")[2]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, "bench", *FEW, "--picture", "x.png")
    assert code == 2
    assert 'pip install "matplotlib>=3.9"' in out + err
