"""The commands for checkpoint files and their functions, compared with the libraries of the file formats."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import fastvar as fv
from fastvar import __main__ as main
from fastvar import checkpoint, tables
from fastvar.checkpoint import anyfile, differences, file_format, reader, writer
from fastvar.cli.ending import DAMAGED

DTYPES = [np.dtype(getattr(ml_dtypes, name, name)) for name in file_format.NATIVE + file_format.EXTENDED]


class Run:
    """Run the command line in this process."""

    def __init__(self, monkeypatch: Any, capsys: Any) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: Any) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["fastvar", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main.main()
        out, err = self._capsys.readouterr()
        return int(exit.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch: Any, capsys: Any) -> Run:
    return Run(monkeypatch, capsys)


def train(folder: Path, steps: int = 3) -> list[str]:
    w = fv.Variable(np.float32([3, 4]), name="body/w")
    b = fv.Variable(np.zeros(3), name="body/b", trainable=False)
    optimizer = fv.optimizers.SGD(0.5, momentum=0.9)
    manager = fv.CheckpointManager(fv.Checkpoint(variables=[w, b], optimizer=optimizer), folder)
    paths = []
    for _ in range(steps):
        optimizer.apply([np.float32([1, 0])], [w])
        paths.append(str(manager.save()))
    return paths


def damage(path: str | Path) -> None:
    """Flip a bit of the last tensor."""
    with reader.File(path) as file:
        at = max(entry.offset or 0 for entry in file.entries.values())
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 1
    Path(path).write_bytes(data)


def cells(out: str) -> list[list[str]]:
    """Return the rows of a printed table, split at two or more spaces."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]


def test_inspect_a_file(run: Run, tmp_path: Path) -> None:
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
    code, out, _ = run("inspect", path, "--values")
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
    code, out, _ = run("inspect", path, "--json", "--values")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (code, found["step"], found["counter"], found["metrics"]["loss"]) == (0, 1234, 7, 0.25)
    assert found["tensors"][0] == {
        **{"name": "variables/w", "dtype": "float32", "shape": [2, 2], "bytes": 16},
        "values": [5.0, -4.0, 3.0, 2],
    }


def test_inspect_a_folder(run: Run, tmp_path: Path) -> None:
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
    code, out, _ = run("inspect", tmp_path)
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
    code, out, _ = run("inspect", tmp_path, "--quick", "--json")
    listed = json.loads(out)
    assert code == DAMAGED
    assert [item["problem"] is None for item in listed] == [False, False, True, True, True]
    assert listed[4]["inspection"]["pinned"]


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("number", [1, 2])
def test_files_that_others_remove_meanwhile_do_not_count(
    number: int, command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    code, out, err = run(command, tmp_path)
    assert len(opened) == number
    assert (code, err) == (0, "")
    assert "ckpt-1.h5" not in out
    assert out.count("whole") == 2


def test_verify(run: Run, tmp_path: Path) -> None:
    first, second, _ = train(tmp_path)
    assert run("verify", first, second) == (0, f"{first}: whole\n{second}: whole\n", "")
    damage(second)
    code, out, _ = run("verify", tmp_path)
    assert code == DAMAGED
    assert out.splitlines()[0] == f"{first}: whole"
    assert out.splitlines()[1].startswith(f"{second}: damaged tensors")
    code, out, _ = run("verify", tmp_path / "none.h5", first)
    assert (code, out.splitlines()) == (
        2,
        [f"{tmp_path / 'none.h5'}: No such file or directory", f"{first}: whole"],
    )
    code, out, _ = run("verify", first, second, "--json")
    assert [item["problem"] is None for item in json.loads(out)] == [True, False]
    (tmp_path / "empty").mkdir()
    code, _, err = run("verify", tmp_path / "empty")
    assert (code, err) == (2, f"fastvar verify: {tmp_path / 'empty'}: there is no checkpoint in this folder\n")
    checkpoint.verify(first)
    with pytest.raises(fv.CheckpointError) as caught:
        checkpoint.verify(second)
    assert caught.value.damaged == ("optimizer/body/w/momentum",)


def test_diff(run: Run, tmp_path: Path) -> None:
    state = {"optimizer": {"steps": 1, "rates": [0.1, 0.2], "gone": None}, "$manager": {"time": 1.0}}
    later = {"optimizer": {"steps": 2, "rates": [0.1, 0.3]}, "$manager": {"time": 2.0}, "data": 1}
    nan = np.array([np.nan, 1.0])
    old = {"v/a": np.float32([3, 4]), "v/same": nan, "v/gone": nan, "v/shape": nan, "v/zero": np.zeros(2)}
    new = {"v/a": np.float32([3, 5]), "v/same": nan, "v/new": nan, "v/shape": nan[:1], "v/zero": np.ones(2)}
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    writer.write(one, old, state, step=1)
    writer.write(two, new, later, step=2)
    code, out, _ = run("diff", one, two)
    assert code == 1
    rows = cells(out)
    assert ["v/a", "5", "5.831", "1", "0.2"] in rows
    assert ["v/zero", "1.414"] in rows[rows.index(["zero before", "norm after"]) :]
    assert out.splitlines()[-8:] == [
        "added: v/new",
        "removed: v/gone",
        "reshaped: v/shape: float64[2], then float64[1]",
        "state: optimizer/steps: 1, then 2",
        "state: optimizer/rates/1: 0.2, then 0.3",
        "state: optimizer/gone: removed",
        "state: data: added",
        "2 tensors changed, 1 equal",
    ]
    code, out, _ = run("diff", one, two, "--json")
    found = json.loads(out)
    assert found["changed"][1] | {"name": ""} == {
        **{"name": "", "before": 0.0, "after": 2**0.5, "difference": 2**0.5},
        "relative": "inf",
        "nonfinite_before": 0,
        "nonfinite_after": 0,
    }
    assert (code, found["equal"]) == (1, ["v/same"])
    writer.write(tmp_path / "three.h5", old, state | {"$manager": {"time": 9.0}}, step=1)
    code, out, _ = run("diff", one, tmp_path / "three.h5")
    assert (code, out) == (0, "0 tensors changed, 5 equal\n")


def test_diff_sees_bits_and_what_is_not_finite(tmp_path: Path) -> None:
    old = {
        "v/zero": np.array([0.0]),
        "v/nan": np.array([np.nan, 3.0]),
        "v/same": np.array([np.nan, 3.0]),
        "v/b": np.array([True]),
    }
    new = {
        "v/zero": np.array([-0.0]),
        "v/nan": np.array([1.0, 3.0]),
        "v/same": np.array([np.nan, 4.0]),
        "v/b": np.array([False]),
    }
    writer.write(tmp_path / "a.h5", old, {}, step=0)
    writer.write(tmp_path / "b.h5", new, {}, step=0)
    zero, nan, partly, boolean = checkpoint.diff(tmp_path / "a.h5", tmp_path / "b.h5").changed
    assert (zero.name, zero.difference) == ("v/zero", 0.0)
    assert (nan.before, nan.after) == (3.0, 10**0.5)
    assert np.isnan(nan.difference)
    assert (partly.before, partly.difference) == (3.0, 1.0)  # NaN in both has not changed
    assert (boolean.before, boolean.difference) == (1.0, 1.0)


def test_diff_shows_what_is_not_finite_first_and_what_was_zero_apart(run: Run, tmp_path: Path) -> None:
    values = {"v/a": [3.0, 4.0], "v/b": [1.0, 0.0], "v/nan": [1.0, 2.0], "v/inf": [1.0, 2.0], "v/zero": [0.0, 0.0]}
    later = values | {"v/a": [3.0, 5.0], "v/b": [2.0, 0.0], "v/zero": [3.0, 4.0]}
    later |= {"v/nan": [np.nan, np.inf], "v/inf": [-np.inf, 2.0], "v/new": [1.0, 1.0]}
    for name, tensors in [("a.h5", values), ("b.h5", later)]:
        writer.write(tmp_path / name, {key: np.array(value) for key, value in tensors.items()}, {}, step=0)
    code, out, _ = run("diff", tmp_path / "a.h5", tmp_path / "b.h5")
    assert code == 1
    assert [row for row in cells(out) if row and not row[0].startswith("---")] == [
        ["not finite", "norm before", "norm after", "NaN, inf before", "after"],
        ["v/nan", "2.236", "0", "0", "2"],
        ["v/inf", "2.236", "2", "0", "1"],
        ["changed", "norm before", "norm after", "difference", "relative"],
        ["v/b", "1", "2", "1", "1"],
        ["v/a", "5", "5.831", "1", "0.2"],
        ["zero before", "norm after"],
        ["v/zero", "5"],
        ["added: v/new"],
        ["5 tensors changed, 0 equal"],
    ]


@pytest.mark.parametrize(("most", "scale"), [(90.0, "linear"), (200.0, "log")])
def test_the_plot_of_a_diff_is_linear_unless_changes_differ_much(
    most: float, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, dpi: drawn.extend(figure.axes))
    name = f"{'encoder/' * 9}layer_11/attention/self/query_and_key/kernel"
    changed = [
        differences.Change("small", 1.0, 2.0, 1.0),
        differences.Change("nan", 1.0, 2.0, np.nan, 0, 1),
        differences.Change("zero", 0.0, 2.0, 2.0),
        differences.Change(name, 1.0, 2.0, most),
    ]
    differences.plot(differences.Difference("a.h5", "b.h5", changed), tmp_path / "a.png")
    (axes,) = drawn
    assert axes.get_xscale() == scale
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["small", f"{'encoder/' * 4}encode..._11/attention/self/query_and_key/kernel"]
    assert axes.get_title() == "a.h5 to b.h5; 2 more changed"


def test_diff_draws(run: Run, tmp_path: Path) -> None:
    first, _, third = train(tmp_path)
    code, _, _ = run("diff", first, third, "--plot", tmp_path / "a.png")
    assert code == 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert run("diff", first, first, "--plot", tmp_path / "b.png")[0] == 0
    code, _, err = run("diff", first, third, "--plot", tmp_path / "a.bad")
    assert code == 2
    assert "bad" in err


def everything() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {"a": np.ones(3, np.int8)}  # the next is not aligned
    for dtype in DTYPES:
        for shape in [(), (3, 5), (0, 2)]:
            count = int(np.prod(shape)) * dtype.itemsize
            data = rng.integers(0, 2 if dtype.kind == "b" else 256, count).astype(np.uint8)
            arrays[f"{dtype.name}/{len(shape)}/{sum(shape)}"] = data.view(dtype).reshape(shape)
    return arrays


def same(got: Any, expected: Any) -> None:
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert np.asarray(got[name]).tobytes() == array.tobytes(), name


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "h5"])
def test_convert_there_and_back(suffix: str, run: Run, tmp_path: Path) -> None:
    arrays = everything()
    if suffix == "safetensors":
        known = checkpoint.foreign.safetensors.NAMES.values()
        arrays = {name: array for name, array in arrays.items() if array.dtype.name in known}
    slot = np.ones(4, np.float32)
    path, target, back = tmp_path / "a.h5", tmp_path / f"b.{suffix}", tmp_path / "c.h5"
    tensors = {f"variables/{name}": array for name, array in arrays.items()}
    writer.write(path, tensors | {"optimizer/w/momentum": slot, "state/arrays/0": slot}, {}, step=5)
    code, out, err = run("convert", path, target)
    assert (code, err) == (0, "")
    assert "the state of optimizers and other objects was left out" in out
    expected = arrays | {"optimizer/w/momentum": slot}
    if suffix == "npz":
        wide = {n: a.astype(np.float32) if a.dtype.kind == "V" else a for n, a in expected.items()}
        wide |= {n: a.astype(np.float32) for n, a in expected.items() if a.dtype.name in file_format.EXTENDED}
        assert "bfloat16/2/8: bfloat16 became float32" in out
        same(dict(np.load(target)), expected := wide)
    elif suffix == "safetensors":
        header = json.loads(target.read_bytes()[8:].split(b"}}")[0] + b"}}")
        for name, entry in header.items():
            assert entry["data_offsets"][0] % expected[name].itemsize == 0
        plain = {n: a for n, a in expected.items() if not a.dtype.name.startswith("float8")}
        with safetensors.safe_open(target, "np") as file:  # the library has no 8-bit floats for NumPy
            assert sorted(file.keys()) == sorted(expected)
            same({name: file.get_tensor(name) for name in plain}, plain)
    else:
        with h5py.File(target) as file:
            for name, array in expected.items():
                bits = array.view(f"u{array.itemsize}") if array.dtype.name in file_format.EXTENDED else array
                same({name: np.asarray(file[name][()])}, {name: bits})
    same(checkpoint.load_foreign(target), expected)
    assert run("convert", target, back)[0] == 0
    checkpoint.verify(back)
    same({n.removeprefix("variables/"): fv.load_variable(back, n) for n, _ in fv.list_variables(back)}, expected)
    assert run("diff", back, target)[0] == 0


def test_convert_never_replaces_unasked_and_leaves_no_debris(run: Run, tmp_path: Path) -> None:
    (path,) = train(tmp_path, 1)
    target = tmp_path / "out" / "a.npz"
    target.parent.mkdir()
    target.write_text("mine")
    code, _, err = run("convert", path, target)
    assert (code, target.read_text()) == (2, "mine")
    assert err.startswith(f"fastvar convert: {target}: file exists")
    assert run("convert", path, target, "--overwrite")[0] == 0
    assert np.load(target)["body/w"].tolist() == [2.5, 4.0]
    os.chmod(target, 0o600)
    damage(path)
    assert "file exists" in run("convert", path, target)[2]  # known before anything is read
    code, _, err = run("convert", path, target, "--overwrite")
    assert code == DAMAGED
    assert "damaged tensors" in err
    assert np.load(target)["body/w"].tolist() == [2.5, 4.0]
    assert [p.name for p in target.parent.iterdir()] == ["a.npz"]


def test_convert_does_not_replace_what_appears_meanwhile(tmp_path: Path, monkeypatch: Any) -> None:
    (path,) = train(tmp_path, 1)
    target = tmp_path / "a.npz"
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (fsync(descriptor), target.write_text("mine")))
    with pytest.raises(FileExistsError, match="file exists; overwrite=True replaces it"):
        checkpoint.convert(path, target)
    assert target.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["a.npz", "ckpt-1.h5"]
    assert not list(tmp_path.glob(".fastvar-*.tmp"))


def test_convert_refuses_what_the_target_cannot_hold(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    writer.write(path, {"variables/z": np.ones(1, np.complex128)}, {}, step=0)
    code, _, err = run("convert", path, tmp_path / "a.safetensors")
    assert code == 2
    assert "safetensors cannot hold complex128, the dtype of 'z'" in err
    code, _, err = run("convert", path, tmp_path / "a.txt")
    assert (code, "must end in" in err) == (2, True)
    code, _, err = run("convert", path, tmp_path / "b.h5", "--to", "fastvar")
    assert (code, "is a checkpoint already" in err) == (2, True)
    assert run("convert", path, tmp_path / "plain", "--to", "npz")[0] == 0
    np.savez(tmp_path / "bad.npz", **{"a": np.ones(1), "a/b": np.ones(1)})
    code, _, err = run("convert", tmp_path / "bad.npz", tmp_path / "c.h5")
    assert code == 2
    assert "cannot be both a tensor and the group" in err
    writer.write(tmp_path / "both.h5", {"variables/o": np.ones(1), "o/w/m": np.ones(1)}, {}, step=0)
    code, _, err = run("convert", tmp_path / "both.h5", tmp_path / "plain.h5")
    assert code == 2
    assert "cannot be both a tensor and the group" in err
    writer.write(tmp_path / "twice.h5", {"variables/o/w/m": np.ones(1), "o/w/m": np.ones(1)}, {}, step=0)
    code, _, err = run("convert", tmp_path / "twice.h5", tmp_path / "d.npz")
    assert (code, "would have one name" in err) == (2, True)


def test_errors_are_one_line_and_have_their_codes(run: Run, tmp_path: Path) -> None:
    (path,) = train(tmp_path, 1)
    for command in (["inspect"], ["verify"], ["diff", path], ["convert"]):
        arguments = [*command, tmp_path / "none.h5", *([tmp_path / "x.npz"] if command == ["convert"] else [])]
        code, out, err = run(*arguments)
        assert code == 2
        assert "none.h5: No such file or directory" in out + err
        assert (out + err).count("\n") == 1
    damage(path)
    assert run("inspect", path, "--values")[0] == DAMAGED
    assert run("diff", path, path)[0] == DAMAGED
    assert run("nonsense")[0] == 2


def test_the_commands_of_the_docs(tmp_path: Path, monkeypatch: Any, run: Run) -> None:
    train(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    commands = [shlex.split(line, comments=True)[1:] for line in re.findall("^fastvar .*", text, re.MULTILINE)]
    ours = [command for command in commands if command[0] in {"inspect", "verify", "diff", "convert"}]
    assert [(command[0], run(*command)[0]) for command in ours] == [
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


def test_a_diff_holds_one_tensor_of_each_file(tmp_path: Path) -> None:
    arrays = {f"v/{i}": np.full(1 << 20, i + 1, np.float32) for i in range(16)}
    writer.write(tmp_path / "a.h5", arrays, {}, step=0)
    writer.write(tmp_path / "b.h5", {name: array + 1 for name, array in arrays.items()}, {}, step=0)
    tracemalloc.start()
    found = checkpoint.diff(tmp_path / "a.h5", tmp_path / "b.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.changed) == 16
    assert found.changed[0].difference == 1024.0
    assert peak < 14 * arrays["v/0"].nbytes  # two tensors, and pieces of them in double precision


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
