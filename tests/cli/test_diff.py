"""`fastvar diff`, and the function behind it."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvar import checkpoint
from fastvar.checkpoint import differences, writer
from tests.support.checkpoint_files import train
from tests.support.commands import cells, run


def test_diff(capsys: Any, tmp_path: Path) -> None:
    state = {"optimizer": {"steps": 1, "rates": [0.1, 0.2], "gone": None}, "$manager": {"time": 1.0}}
    later = {"optimizer": {"steps": 2, "rates": [0.1, 0.3]}, "$manager": {"time": 2.0}, "data": 1}
    nan = np.array([np.nan, 1.0])
    old = {"v/a": np.float32([3, 4]), "v/same": nan, "v/gone": nan, "v/shape": nan, "v/zero": np.zeros(2)}
    new = {"v/a": np.float32([3, 5]), "v/same": nan, "v/new": nan, "v/shape": nan[:1], "v/zero": np.ones(2)}
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    writer.write(one, old, state, step=1)
    writer.write(two, new, later, step=2)
    code, out, _ = run(capsys, "diff", one, two)
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
    code, out, _ = run(capsys, "diff", one, two, "--json")
    found = json.loads(out)
    assert found["changed"][1] | {"name": ""} == {
        **{"name": "", "before": 0.0, "after": 2**0.5, "difference": 2**0.5},
        "relative": "inf",
        "nonfinite_before": 0,
        "nonfinite_after": 0,
    }
    assert (code, found["equal"]) == (1, ["v/same"])
    writer.write(tmp_path / "three.h5", old, state | {"$manager": {"time": 9.0}}, step=1)
    code, out, _ = run(capsys, "diff", one, tmp_path / "three.h5")
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


def test_diff_shows_what_is_not_finite_first_and_what_was_zero_apart(capsys: Any, tmp_path: Path) -> None:
    values = {"v/a": [3.0, 4.0], "v/b": [1.0, 0.0], "v/nan": [1.0, 2.0], "v/inf": [1.0, 2.0], "v/zero": [0.0, 0.0]}
    later = values | {"v/a": [3.0, 5.0], "v/b": [2.0, 0.0], "v/zero": [3.0, 4.0]}
    later |= {"v/nan": [np.nan, np.inf], "v/inf": [-np.inf, 2.0], "v/new": [1.0, 1.0]}
    for name, tensors in [("a.h5", values), ("b.h5", later)]:
        writer.write(tmp_path / name, {key: np.array(value) for key, value in tensors.items()}, {}, step=0)
    code, out, _ = run(capsys, "diff", tmp_path / "a.h5", tmp_path / "b.h5")
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
    assert axes.get_title() == "a.h5 to b.h5; 1 not finite; 1 more changed"


def test_diff_draws(capsys: Any, tmp_path: Path) -> None:
    first, _, third = train(tmp_path)
    code, _, _ = run(capsys, "diff", first, third, "--plot", tmp_path / "a.png")
    assert code == 1
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert run(capsys, "diff", first, first, "--plot", tmp_path / "b.png")[0] == 0
    code, _, err = run(capsys, "diff", first, third, "--plot", tmp_path / "a.bad")
    assert code == 2
    assert "bad" in err


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
