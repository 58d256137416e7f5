"""What the commands for checkpoint files have in common: errors, pipes, and the lines of the docs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvar.checkpoint import writer
from fastvar.cli.ending import DAMAGED
from tests.support.checkpoint_files import damage, train
from tests.support.commands import run


def test_errors_are_one_line_and_have_their_codes(capsys: Any, tmp_path: Path) -> None:
    (path,) = train(tmp_path, 1)
    for command in (["inspect"], ["verify"], ["diff", path], ["convert"]):
        arguments = [*command, tmp_path / "none.h5", *([tmp_path / "x.npz"] if command == ["convert"] else [])]
        code, out, err = run(capsys, *arguments)
        assert code == 2
        assert "none.h5: No such file or directory" in out + err
        assert (out + err).count("\n") == 1
    damage(path)
    assert run(capsys, "inspect", path, "--values")[0] == DAMAGED
    assert run(capsys, "diff", path, path)[0] == DAMAGED
    assert run(capsys, "nonsense")[0] == 2


def test_the_commands_of_the_docs(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    train(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    commands = [shlex.split(line, comments=True)[1:] for line in re.findall("^fastvar .*", text, re.MULTILINE)]
    ours = [command for command in commands if command[0] in {"inspect", "verify", "diff", "convert"}]
    assert [(command[0], run(capsys, *command)[0]) for command in ours] == [
        *[("inspect", 0), ("inspect", 0), ("verify", 0)],
        *[("diff", 1), ("convert", 0), ("convert", 0), ("convert", 0)],
    ]


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_reader_that_has_enough_is_no_error(option: str, tmp_path: Path) -> None:
    tensors = {f"variables/{i:05}": np.zeros(1) for i in range(5000)}
    writer.write(tmp_path / "a.h5", tensors, {}, step=0)
    command = f"{sys.executable} -m fastvar inspect {option} {tmp_path / 'a.h5'} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith(str(tmp_path / "a.h5") if not option else "{")
    assert done.stderr == ""
