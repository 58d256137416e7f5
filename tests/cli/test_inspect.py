"""`fastvar inspect` and `fastvar verify`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import fastvar as fv
from fastvar import checkpoint, tables
from fastvar.checkpoint import anyfile, file_format, writer
from fastvar.cli.ending import DAMAGED
from tests.support.checkpoint_files import damage, train
from tests.support.commands import cells, run


def test_inspect_a_file(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    array = np.array([[3, -4], [np.nan, np.inf]], np.float32)
    state = {
        "$manager": {"time": 86400.0 * 365, "metrics": {"loss": 0.25, "best": True}},
        "optimizer": {"class_name": "Adam"},
        "long": "x" * 500,
        "markup": "[red]bold[/red]",
    }
    tensors = {"variables/w": array, "variables/z": np.complex64([3 + 4j]), "variables/[red]\x1b[2J": np.zeros(0)}
    writer.write(path, tensors, state, step=1234, saved=file_format.Saved("ab" * 16, 7))
    code, out, _ = run(capsys, "inspect", path, "--values")
    assert code == 0
    assert "step 1,234, save 7 of run abababab, 1971-01-01" in out
    assert "metrics: loss 0.25, best True" in out
    rows = cells(out)
    assert ["variables/w", "float32", "[2, 2]", "16", "5", "-4", "3", "2"] in rows
    assert ["variables/z", "complex64", "[1]", "8", "5", "5", "5", "0"] in rows
    assert ["variables/[red]\\x1b[2J", "float64", "[0]", "0", "0", "nan", "nan", "0"] in rows
    assert "\x1b" not in out
    assert 'markup: "[red]bold[/red]"' in out
    assert 'optimizer: {"class_name": "Adam"}' in out
    assert max(map(len, out.splitlines())) < 250
    assert "$manager" not in out
    code, out, _ = run(capsys, "inspect", path, "--json", "--values")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (code, found["step"], found["counter"], found["metrics"]["loss"]) == (0, 1234, 7, 0.25)
    assert found["tensors"][0] == {
        **{"name": "variables/w", "dtype": "float32", "shape": [2, 2], "bytes": 16},
        "values": [5.0, -4.0, 3.0, 2],
    }


def test_inspect_a_folder(capsys: Any, tmp_path: Path) -> None:
    first, second, third = train(tmp_path)
    damage(second)
    Path(third + ".pin").touch()
    Path(tmp_path / "ckpt-9.h5").write_bytes(bytes(9000))
    np.savez(tmp_path / "other.npz", w=np.ones(1))
    with h5py.File(tmp_path / "others.h5", "w") as file:
        file["w"] = 1
    (tmp_path / ".fastvar-0.tmp").write_bytes(Path(first).read_bytes())
    (tmp_path / "folder.h5").mkdir()
    os.symlink("gone", tmp_path / "ckpt-8.h5")
    code, out, _ = run(capsys, "inspect", tmp_path)
    rows = {row[0]: row for row in cells(out) if row}
    assert code == DAMAGED
    assert [name for name in rows if name.endswith(".h5")] == [
        *("ckpt-8.h5", "ckpt-9.h5", "ckpt-1.h5", "ckpt-2.h5", "ckpt-3.h5")
    ]
    assert rows["ckpt-1.h5"][1:3] == ["1", "1"]
    assert rows["ckpt-1.h5"][-1] == "whole"
    assert rows["ckpt-2.h5"][1:3] == ["2", "2"]
    assert rows["ckpt-2.h5"][-1].startswith("damaged tensors: 'optimizer/body/w/momentum'")
    assert rows["ckpt-3.h5"][-1] == "whole, pinned"
    assert rows["ckpt-8.h5"][-1] == "a link to a file that is not there"
    assert rows["ckpt-9.h5"][-1].endswith("there is no commit record")
    assert f"{tmp_path}: 5 checkpoints, 3 damaged" in out
    code, out, _ = run(capsys, "inspect", tmp_path, "--quick", "--json")
    listed = json.loads(out)
    assert code == DAMAGED
    assert [item["problem"] is None for item in listed] == [False, False, True, True, True]
    assert listed[4]["inspection"]["pinned"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("number", [1, 2])
def test_files_that_others_remove_meanwhile_do_not_count(
    number: int, command: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replace the file as a running training does: before it is opened, or before it is read."""
    first, *_ = train(tmp_path)
    real, opened = os.open, []

    def remove_and_open(path: Any, *arguments: Any, **options: Any) -> int:
        if path == first:
            opened.append(path)
            if len(opened) == number:
                os.unlink(first)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", remove_and_open)
    code, out, err = run(capsys, command, tmp_path)
    assert len(opened) == number
    assert (code, err) == (0, "")
    assert "ckpt-1.h5" not in out
    assert out.count("whole") == 2


def test_verify(capsys: Any, tmp_path: Path) -> None:
    first, second, _ = train(tmp_path)
    assert run(capsys, "verify", first, second) == (0, f"{first}: whole\n{second}: whole\n", "")
    damage(second)
    code, out, _ = run(capsys, "verify", tmp_path)
    assert code == DAMAGED
    assert out.splitlines()[0] == f"{first}: whole"
    assert out.splitlines()[1].startswith(f"{second}: damaged tensors")
    code, out, _ = run(capsys, "verify", tmp_path / "none.h5", first)
    assert (code, out.splitlines()) == (
        2,
        [f"{tmp_path / 'none.h5'}: No such file or directory", f"{first}: whole"],
    )
    code, out, _ = run(capsys, "verify", first, second, "--json")
    assert [item["problem"] is None for item in json.loads(out)] == [True, False]
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, "verify", tmp_path / "empty")
    assert (code, err) == (2, f"fastvar verify: {tmp_path / 'empty'}: there is no checkpoint in this folder\n")
    checkpoint.verify(first)
    with pytest.raises(fv.CheckpointError) as caught:
        checkpoint.verify(second)
    assert caught.value.damaged == ("optimizer/body/w/momentum",)


def test_values_are_those_of_numpy() -> None:
    array = np.random.default_rng(0).normal(size=(file_format.CHUNK + 77,)).astype(np.float32)
    norm, low, high, nonfinite = anyfile.values_of(array)
    assert norm == pytest.approx(float(np.linalg.norm(array.astype(np.float64))), rel=1e-12)
    assert (low, high, nonfinite) == (float(array.min()), float(array.max()), 0)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (14463, "14.5 kB"), (5e13, "50 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert tables.size(count) == text
