"""How commands end: exit codes, output that nobody takes, messages with flags."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar import __main__ as main
from fastvar.checkpoint import writer
from fastvar.cli import ending, files
from fastvar.cli.ending import CLOSED, DAMAGED, DIFFERENT, FINE, INTERRUPTED, TROUBLE
from tests.support.commands import run

ROOT = Path(fv.__file__).parents[1]


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of Bash in which `fastvar` is the command line."""
    env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "PYTHONUNBUFFERED"}}
    env |= {"PYTHONPATH": str(ROOT), **environment}
    script = f'fastvar() {{ {sys.executable} -m fastvar "$@"; }}\n{line}'
    command = ["bash", "-o", "pipefail", "-c", script]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two checkpoints that differ, a damaged one, and one of many tensors."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "damaged"):
        writer.write(tmp_path / f"{name}.h5", {"variables/w": rng.normal(size=9)}, {}, step=1)
    data = bytearray((tmp_path / "damaged.h5").read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged.h5").write_bytes(data)
    writer.write(tmp_path / "many.h5", {f"variables/{i:05}": np.zeros(1) for i in range(5000)}, {}, step=0)
    return tmp_path


def test_every_code_is_one_of_those_that_the_help_lists(folder: Path, capsys: Any) -> None:
    a, b, damaged = (folder / f"{name}.h5" for name in ("a", "b", "damaged"))
    expected = {
        ("info",): FINE,
        ("inspect", a): FINE,
        ("diff", a, a): FINE,
        ("diff", a, b): DIFFERENT,
        ("verify", damaged): DAMAGED,
        ("inspect", folder): DAMAGED,
        ("diff", a, damaged): DAMAGED,
        ("convert", damaged, folder / "x.npz"): DAMAGED,
        ("verify", folder / "none.h5"): TROUBLE,
        ("inspect", "/dev/null"): TROUBLE,
        ("diff", a, folder): TROUBLE,
        ("convert", folder, folder / "x.npz"): TROUBLE,
        ("convert", a, folder / "none" / "x.npz"): TROUBLE,
        ("convert", a, "/dev/null", "--to", "npz", "--overwrite"): TROUBLE,
        ("plot-schedule", "print(1)"): TROUBLE,
        ("unknown",): TROUBLE,
        (): TROUBLE,
        ("--help",): FINE,
        ("--version",): FINE,
    }
    got = {command: run(capsys, *command) for command in expected}
    assert {command: code for command, (code, _, _) in got.items()} == expected
    assert all("Traceback" not in err for _, _, err in got.values())
    assert got["--version",][1] == f"fastvar {fv.__version__}\n"
    codes = [FINE, DIFFERENT, TROUBLE, DAMAGED, INTERRUPTED, CLOSED]
    listed = [line.split()[0] for line in got["--help",][1].partition("exit codes:\n")[2].splitlines()]
    assert listed == [*map(str, codes)]


def test_the_installed_command_is_the_same() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    module, _, name = tomllib.loads(text)["project"]["scripts"]["fastvar"].partition(":")
    assert (module, getattr(main, name)) == (main.__name__, main.main)


def test_without_a_command_the_help_is_shown(capsys: Any) -> None:
    assert run(capsys) == (TROUBLE, main.parser().format_help(), "")


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), MemoryError()], ids=repr)
def test_a_fault_of_ours_has_no_code_of_a_damaged_file(
    error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(files.checkpoint, "verify", lambda path: (_ for _ in ()).throw(error))
    code, _, err = run(capsys, "verify", folder / "a.h5")
    assert code == TROUBLE
    assert "Traceback" in err


def test_an_interrupt_has_its_code(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(files.checkpoint, "verify", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(capsys, "verify", folder / "a.h5") == (INTERRUPTED, "", "")


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("fastvar inspect {}/many.h5 | head -1", CLOSED, ""),
        ("fastvar inspect --json {}/many.h5 | head -1", CLOSED, ""),
        ("fastvar info >&-", FINE, ""),
        ("fastvar verify {}/damaged.h5 >&- 2>&-", DAMAGED, ""),
        ("fastvar --help > /dev/full", TROUBLE, "fastvar: standard output: No space left on device\n"),
        ("fastvar verify {}/a.h5 > /dev/full", TROUBLE, "fastvar: standard output: No space left on device\n"),
        ("fastvar inspect {}/many.h5 > /dev/full", TROUBLE, "fastvar: standard output: No space left on device\n"),
        ("fastvar verify none.h5 > /dev/full 2>&1", TROUBLE, ""),
        ("fastvar nonsense 2> /dev/full", TROUBLE, ""),
        ("fastvar diff {}/a.h5 none.h5 2>&-", TROUBLE, ""),
    ],
)
def test_output_that_nobody_takes_ends_quietly(line: str, code: int, error: str, folder: Path) -> None:
    if "/dev/full" in line and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    done = shell(line.format(folder))
    assert (done.returncode, done.stderr) == (code, error)


def test_ascii_terminals_show_any_name(tmp_path: Path) -> None:
    writer.write(tmp_path / "ä.h5", {"variables/Gewicht-größer": np.ones(1)}, {}, step=0)
    done = shell(f"fastvar inspect {tmp_path}/ä.h5", PYTHONIOENCODING="ascii", LANG="C", TERM="dumb", NO_COLOR="1")
    assert (done.returncode, done.stderr) == (FINE, "")
    assert done.stdout.isascii()
    assert "variables/Gewicht-gr\\xf6\\xdfer" in done.stdout
    done = shell("fastvar verify ö.h5", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (TROUBLE, "")
    assert done.stdout == "\\xf6.h5: No such file or directory\n"


@pytest.mark.parametrize("command", ["info", "plot-schedule", "inspect", "verify", "diff", "convert"])
def test_every_command_explains_itself(command: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, command, "--help")
    assert code == FINE
    assert out.startswith(f"usage: fastvar {command} ")
    assert ending.CODES in out
    assert max(map(len, out.splitlines())) <= 80


def test_messages_name_flags(folder: Path, capsys: Any) -> None:
    a, pieces = folder / "a.h5", folder / "pieces.npz"
    np.savez(pieces, w=np.ones(2, "V2"), b=np.ones(1))
    expected = {
        ("convert", a, folder / "b.h5"): "file exists; --overwrite replaces it",
        ("convert", pieces, folder / "b.h5"): "file exists; --overwrite replaces it",
        ("convert", a, folder / "x.txt"): "give the format, as --to safetensors",
        ("convert", a, folder / "x.pt"): "--names torch is for load_state_dict",
        (
            "convert",
            a,
            folder / "x.npz",
            "--prefix",
            "model",
        ): "--prefix must be that of a tensor (w), got 'model'",
        ("convert", pieces, folder / "y.npz"): "--opaque bfloat16 (or another) would tell",
        ("inspect", pieces): "--opaque bfloat16 (or another) would tell",
        ("plot-schedule", "LinearDecay(1.0, 10)", "--steps", "0"): "--steps must be >= 1, got 0",
        ("plot-schedule", "LinearDecay(1.0, -1)", "--steps", "5"): "decay_steps must be > 0, got -1",
    }
    for command, message in expected.items():
        _, out, err = run(capsys, *command)
        assert message in out + err, command


def test_arguments_of_python_never_appear_where_there_is_a_flag(capsys: Any) -> None:
    """Every flag of every command, in both forms of our messages."""
    (choices,) = (action.choices for action in main.parser()._actions if isinstance(action.choices, dict))
    for command in choices.values():
        assert isinstance(command, argparse.ArgumentParser)
        for action in command._actions:
            flag = action.option_strings[-1] if action.option_strings else None
            if flag is not None:
                value = "True" if action.nargs == 0 else "'x'"
                text = ending.spelled(f"{action.dest}={value} or {action.dest} must be y", command)
                assert text == f"{flag}{' x' * (action.nargs != 0)} or {flag} must be y"
