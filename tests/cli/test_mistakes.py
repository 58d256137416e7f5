"""Mistakes of new users: each ends with a message that says what to do, and never with a traceback."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.cli.ending import DAMAGED, TROUBLE
from tests.support.commands import run

SCHEDULE = "CosineDecay(0.1,decay_steps=10)"
MISTAKES = {  # the arguments: the exit code, and the end of what is printed
    # no such thing
    "inspect nofile.h5": (TROUBLE, "fastvar inspect: nofile.h5: No such file or directory"),
    "verify nofile.h5": (TROUBLE, "nofile.h5: No such file or directory"),
    "diff a.h5 nofile.h5": (TROUBLE, "fastvar diff: nofile.h5: No such file or directory"),
    "convert nofile.h5 b.npz": (TROUBLE, "fastvar convert: nofile.h5: No such file or directory"),
    "convert a.h5 nofolder/b.npz": (TROUBLE, "nofolder: No such file or directory"),
    f"plot-schedule {SCHEDULE} --output nofolder/b.png": (TROUBLE, "nofolder/b.png: No such file or directory"),
    "inspect ": (TROUBLE, "fastvar inspect: '': No such file or directory"),
    # a folder for a file, and a file for a folder
    "convert run b.npz": (TROUBLE, "run: this is a folder; give a file, such as run/ckpt-1.h5"),
    "diff a.h5 run": (TROUBLE, "run: this is a folder; give a file, such as run/ckpt-1.h5"),
    "diff empty a.h5": (TROUBLE, "empty: this is a folder; give a file"),
    "verify empty": (TROUBLE, "empty: there is no checkpoint in this folder"),
    "inspect run --values": (TROUBLE, "--values and --opaque are for a file, and this is a folder"),
    "inspect a.h5 --quick": (TROUBLE, "--quick is for a folder, and this is a file"),
    # misspelled
    "inspct a.h5": (TROUBLE, "'bench'); did you mean inspect?"),
    "plot x": (TROUBLE, "'bench'); did you mean plot-schedule?"),
    "version": (TROUBLE, "'bench'); did you mean --version?"),
    "list": (TROUBLE, "'bench')"),
    "--verison": (TROUBLE, "fastvar: error: unrecognized arguments: --verison; did you mean --version?"),
    "inspect a.h5 --valuse": (TROUBLE, "unrecognized arguments: --valuse; did you mean --values?"),
    "convert a.h5 b.npz --weights_only": (TROUBLE, "--weights_only; did you mean --weights-only?"),
    "convert a.h5 b.npz --only-weights": (
        TROUBLE,
        "fastvar convert: error: unrecognized arguments: --only-weights",
    ),
    "convert a.h5 b.npz --weight-only": (TROUBLE, "--weight-only; did you mean --weights-only?"),
    "convert a.h5 b.npz --names=pytorch": (TROUBLE, "'torch'); did you mean torch?"),
    "convert a.h5 b.npz --prefix model": (TROUBLE, "--prefix must be that of a tensor (w), got 'model'"),
    "plot-schedule CosineDecy(0.1,10)": (TROUBLE, "got CosineDecy; did you mean CosineDecay?"),
    "plot-schedule CosineDecay(0.1,steps=10)": (TROUBLE, "unknown argument 'steps', did you mean 'decay_steps'?"),
    # missing, or too much
    "inspect": (TROUBLE, "the following arguments are required: FILE|DIR"),
    "verify": (TROUBLE, "the following arguments are required: FILE|DIR"),
    "diff a.h5": (TROUBLE, "the following arguments are required: B"),
    "convert a.h5": (TROUBLE, "the following arguments are required: TARGET"),
    "plot-schedule": (TROUBLE, "the following arguments are required: schedule"),
    "plot-schedule CosineDecay": (TROUBLE, "must have arguments, as CosineDecay(...), got 'CosineDecay'"),
    "plot-schedule CosineDecay(0.1": (TROUBLE, "must be a Python expression, got 'CosineDecay(0.1'"),
    "inspect a.h5 a.h5": (TROUBLE, "fastvar inspect: error: unrecognized arguments: a.h5"),
    "info --json": (TROUBLE, "fastvar info: error: unrecognized arguments: --json"),
    # files of another kind
    "inspect empty.h5": (DAMAGED, "empty.h5: the file is empty"),
    "verify empty.h5": (DAMAGED, "empty.h5: the file is empty; use another checkpoint"),
    "inspect notes.txt": (DAMAGED, "notes.txt: neither HDF5 nor .npz nor safetensors"),
    "verify notes.txt": (DAMAGED, "not written by fastvar, or destroyed: there is no commit record"),
    "convert a.pkl b.npz": (DAMAGED, "a.pkl: neither HDF5 nor .npz nor safetensors"),
    "verify w.npz": (DAMAGED, "import .npz and safetensors files by Checkpoint.import_weights"),
    "convert a.h5 b.pt": (TROUBLE, "load_file; --names torch is for load_state_dict"),
    "convert a.h5 b": (TROUBLE, "or give the format, as --to safetensors"),
    "convert a.h5 w.npz": (TROUBLE, "w.npz: file exists; --overwrite replaces it"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files of many kinds."""
    monkeypatch.chdir(tmp_path)
    w = fv.Variable([1.0, 2.0], name="w")
    fv.Checkpoint(variables=[w]).save("a.h5")
    fv.CheckpointManager(fv.Checkpoint(variables=[w]), "run").save(1)
    np.savez("w.npz", w=w.value)
    Path("empty").mkdir()
    Path("empty.h5").touch()
    Path("notes.txt").write_text("a line\n" * 1000)
    Path("a.pkl").write_bytes(pickle.dumps({"w": [1.0, 2.0]}))
    return tmp_path


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_by_what_to_do(line: str, folder: Path, capsys: Any) -> None:
    before = sorted(folder.rglob("*"))
    code, out, err = run(capsys, *line.split(" "))
    expected, end = MISTAKES[line]
    assert (code, (out + err).rstrip("\n").rpartition(end)[1:]) == (expected, (end, ""))
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before


def test_a_file_of_pytorch_is_named_as_such(folder: Path, capsys: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(2)}, folder / "model.pt")
    for command in (["inspect", "model.pt"], ["verify", "model.pt"], ["convert", "model.pt", "b.h5"]):
        code, out, err = run(capsys, *command)
        assert code == DAMAGED
        assert "model.pt: torch.save wrote it, as a pickle" in out + err
