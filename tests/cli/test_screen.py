"""Lines and tables on a screen."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar import __main__ as main
from fastvar.cli import screen

LONG = "encoder/layer_11/attention/self/query_and_key/kernel"


def shown(capsys: Any, columns: int | None, titles: Any, rows: Any) -> list[str]:
    os.environ.pop("COLUMNS", None)
    if columns is not None:
        os.environ["COLUMNS"] = str(columns)
    screen.table(titles, rows)
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_tables_are_aligned(capsys: Any) -> None:
    lines = shown(
        capsys, 80, ["name", ">count", "what"], [["a", "1", "x"], ["重み", "1,000", "y"], ["c\n", "", ""]]
    )
    assert lines == [
        "name  count  what",
        "----  -----  ----",
        "a         1  x",
        "重み  1,000  y",
        "c\\n",
        "",
    ]


def test_a_table_that_is_too_wide_keeps_names_whole_and_wraps_the_rest(capsys: Any) -> None:
    rows = [[LONG, "1,000", "loss 0.25, accuracy 0.75, rate 0.001"], ["b", "1", ""]]
    narrow, wide, piped = (
        shown(capsys, columns, ["name", ">count", "metrics"], rows) for columns in (50, 160, None)
    )
    assert narrow == [
        "name              count  metrics",
        "----------------  -----  -------------------------",
        "encoder/layer_11/attention/self/query_and_key/",
        "  kernel",
        "                  1,000  loss 0.25, accuracy 0.75,",
        "                           rate 0.001",
        "b                     1",
        "",
    ]
    assert wide[2] == f"{LONG}  1,000  loss 0.25, accuracy 0.75, rate 0.001"
    assert wide == piped


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    far, near = pty.openpty()
    with os.fdopen(far), os.fdopen(near, "w") as terminal:
        monkeypatch.delenv("COLUMNS")
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, terminal)
        for columns, expected in [(60, 60), (160, 160), (10, 40)]:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
            assert screen.width() == expected
        monkeypatch.undo()


def test_lines_are_wrapped_at_spaces_on_a_terminal_only(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "word " * 30
    screen.say(text)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert " ".join("".join(line) for line in lines).split() == text.split()
    monkeypatch.delenv("COLUMNS")
    screen.say(text)
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_no_command_is_wider_than_the_terminal(
    columns: int, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {LONG.replace("11", str(i)): fv.Variable(np.full((2, 2), -0.1234 * i)) for i in range(3)}
    optimizer = fv.optimizers.Adam(0.1)
    manager = fv.CheckpointManager(fv.Checkpoint(weights, optimizer=optimizer), tmp_path / "run")
    first = manager.save(metrics={"loss": 0.25, "accuracy": 0.75, "learning_rate": 0.0123456})
    optimizer.apply([np.ones((2, 2))] * 3, [*weights.values()])
    second = manager.save(metrics={"loss": 0.125})
    monkeypatch.setenv("COLUMNS", str(columns))
    widths = {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.h5").write_bytes(Path(first).read_bytes()[:9000])
    for command in (
        *(["--help"], ["info"], ["plot-schedule", "LinearDecay(0.1, decay_steps=1000)", "--output", "a.png"]),
        *(["inspect", first, "--values"], ["inspect", first], ["inspect", "run"], ["inspect", "."]),
        *(["verify", "run"], ["verify", "cut.h5"], ["diff", first, second], ["diff", first, "run/ckpt-1.h5"]),
        ["convert", first, "weights.npz", "--weights-only", "--names", "torch"],
    ):
        monkeypatch.setattr(sys, "argv", ["fastvar", *map(str, command)])
        with pytest.raises(SystemExit):
            main.main()
        out = capsys.readouterr().out
        widths[command[0], command[-1]] = max(map(len, out.splitlines()))
        assert out.isascii()
    if columns >= 80:
        assert max(widths.values()) <= columns
    if columns == 160:
        assert widths["inspect", "--values"] > 80


@pytest.mark.parametrize(
    "variables", [{"NO_COLOR": "1"}, {"TERM": "dumb", "LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str
)
def test_a_terminal_without_colours_shows_what_a_pipe_gets(variables: dict[str, str], tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    fv.Checkpoint(ä=fv.Variable(np.full(3, np.nan))).save(tmp_path / "a.h5")
    command = [sys.executable, "-m", "fastvar", "inspect", str(tmp_path / "a.h5"), "--values"]
    environment = os.environ | variables | {"COLUMNS": "80", "PYTHONPATH": os.pathsep.join(sys.path)}
    piped = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    far, near = pty.openpty()
    with os.fdopen(far, "rb", buffering=0) as reader:
        subprocess.run(command, env=environment, stdout=near, check=True)
        shown = reader.read(100_000).decode()
        os.close(near)
    assert shown.replace("\r\n", "\n") == piped
    assert "\x1b" not in shown
    assert ("ä" if "NO_COLOR" in variables else "\\xe4") in shown
