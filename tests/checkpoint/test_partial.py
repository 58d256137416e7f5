"""Partial restores and renaming: reports, suggestions and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint.report import Like, Restored, summary
from fastvar.checkpoint.writer import write


def variables(*names: str, value: float = 0.0) -> dict[str, fv.Variable]:
    return {name: fv.Variable(np.full(2, value)) for name in names}


def saved(path: Path, *names: str) -> str:
    return fv.Checkpoint(variables(*names, value=1.0)).save(path)


def test_a_short_report_names_everything_and_what_was_meant(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", "encoder/dense_1/kernel", "encoder/dense_1/bias", "head")
    restored = fv.Checkpoint(variables("enc/dense_1/kernel", "encoder/dense_1/bias", "heads")).restore(
        path, partial=True
    )
    assert str(restored).splitlines() == [
        f"{path}: 1 restored",
        "  restored: variables/encoder/dense_1/bias",
        "  not in the file: variables/enc/dense_1/kernel (it has variables/encoder/dense_1/kernel)",
        "  not in the file: variables/heads (it has variables/head)",
        "  only in the file: variables/encoder/dense_1/kernel, variables/head",
    ]


def test_a_long_report_counts_by_path(tmp_path: Path) -> None:
    names = [f"{part}/{i}/{leaf}" for part in ("body", "head") for i in range(500) for leaf in ("kernel", "bias")]
    path = saved(tmp_path / "a.h5", *names[:1500], "extra")
    text = str(fv.Checkpoint(variables(*names)).restore(path, partial=True))
    assert text.splitlines() == [
        f"{path}: 1,500 restored",
        "  restored: variables/body/... (1,000), variables/head/... (500)",
        "  not in the file: variables/head/... (500)",
        "  only in the file: variables/extra",
    ]
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        fv.Checkpoint(variables(*names)).restore(path)
    lines = str(caught.value).splitlines()
    assert len(lines) < 30
    assert "  missing in the file: and 490 more: variables/head/... (490)" in lines


def test_names_without_a_common_path_are_cut_off() -> None:
    assert summary([f"v{i}" for i in range(7)]) == "v0, v1, v2, v3, v4 and 2 more"
    assert summary(["a/x", "a/y", "b", "a/z", "c", "d"]) == "a/... (3), b, c, d"


def test_none_leaves_a_variable_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", "v", "w")
    here = variables("v", "w")
    restored = fv.Checkpoint(here).restore(path, partial=True, name_map={"w": None})
    assert (restored.taken, restored.missing, restored.skipped) == (["variables/v"], [], ["variables/w"])
    assert here["v"].value.all()
    assert not here["w"].value.any()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("variables/enc/dense_1/kernel", "variables/encoder/dense_1/kernel"),  # the longest common ending
        ("variables/encoder/dense_2/kernle", "variables/encoder/dense_2/kernel"),  # a misspelling
        ("encoder.dense_1.kernel", "variables/encoder/dense_1/kernel"),  # PyTorch's dots
        ("e/x/scale", "variables/a/long/path/that/is/quite/another/x/scale"),  # only the ending is similar
        ("e.x.scale", "variables/a/long/path/that/is/quite/another/x/scale"),
        ("variables/head (as encoder/dense_1/kernels)", "variables/encoder/dense_1/kernel"),  # it is renamed
        ("variables/head (as top)", None),
        ("variables/x", None),  # the common beginning variables/ does not count
    ],
)
def test_what_was_meant(name: str, meant: str | None) -> None:
    names = [f"variables/encoder/dense_{i}/{leaf}" for i in (1, 2) for leaf in ("kernel", "bias")]
    assert Like([*names, "variables/w", "variables/a/long/path/that/is/quite/another/x/scale"]).find(name) == meant


def test_the_error_proposes_the_renaming_that_all_names_follow(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", "encoder/a/w", "encoder/b/w")
    here = variables("body/enc/a/w", "body/enc/b/w")
    with pytest.raises(ValueError, match=r"name_map=\{'body/enc': 'encoder'\} renames"):
        fv.Checkpoint(here).restore(path)
    fv.Checkpoint(here).restore(path, name_map={"body/enc": "encoder"})
    assert here["body/enc/a/w"].value.all()


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("name_map", "words"),
    [
        ({"bodi": "encoder"}, "name_map: 'bodi' names no variable here; is it 'body'?"),
        ({"body/kernels": None}, "name_map: 'body/kernels' names no variable here; is it 'body/kernel'?"),
        ({"body": "encodr"}, "name_map: 'encodr' names nothing in .*; is it 'encoder'?"),
        ({"variables/body": "encoder"}, "name_map: 'variables/body' names no variable here"),
    ],
)
def test_slips_in_a_name_map_are_errors(name_map: Any, words: str, partial: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", "encoder/kernel")
    here = variables("body/kernel")
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        fv.Checkpoint(here).restore(path, partial=partial, name_map=name_map)
    np.savez(tmp_path / "a.npz", **{"encoder/kernel": np.ones(2)})
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        fv.Checkpoint(here).import_weights(tmp_path / "a.npz", partial=partial, name_map=name_map)
    assert not here["body/kernel"].value.any()


@pytest.mark.parametrize(
    ("here", "there", "name_map"),
    [
        ("model/w", "w", {"model": ""}),
        ("w", "model/w", {"": "model"}),
        ("model/w", "model/w", {"": "other", "model": "model"}),  # the longest match wins
    ],
)
def test_prefixes_come_and_go(here: str, there: str, name_map: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", there, "other/x")
    ours = variables(here)
    fv.Checkpoint(ours).restore(path, partial=True, name_map=name_map)
    assert ours[here].value.all()


def test_shapes_that_differ_are_named_with_both(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", "w")
    w = fv.Variable(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"variables/w: float64\[3, 1\] here, float64\[2\] in the file"):
        fv.Checkpoint(w=w).restore(path, partial=True)


def test_a_name_map_reaches_variables_that_only_the_optimizer_has(tmp_path: Path) -> None:
    w, v = fv.Variable(np.zeros(2), name="w"), fv.Variable(np.zeros(2), name="v")
    first, second = fv.optimizers.SGD(momentum=0.9), fv.optimizers.SGD(momentum=0.9)
    first.apply([np.ones(2)], [w])
    second.build([v])
    path = fv.Checkpoint(optimizer=first).save(tmp_path / "a.h5")
    fv.Checkpoint(optimizer=second).restore(path, name_map={"v": "w"})
    assert second.slot(v, "momentum").tolist() == first.slot(w, "momentum").tolist()


def test_what_a_manager_keeps_for_itself_is_no_ones_state(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", {"variables/w": np.ones(2)}, {"$manager": {"time": 1.0}, "mine": 1}, step=3)
    w = fv.Variable(np.zeros(2))
    restored = fv.Checkpoint(w=w).restore(tmp_path / "a.h5", partial=True)
    assert restored.skipped == ["mine"]
    assert str(restored).startswith(f"{tmp_path / 'a.h5'}, step 3: 1 restored")


def test_refusals_and_notes_are_in_the_report() -> None:
    restored = Restored("a.h5", 0, refused=["optimizer: class Adam"], notes=[f"n{i}" for i in range(7)])
    lines = str(restored).splitlines()
    assert lines[1:] == [
        "  refused: optimizer: class Adam",
        *(f"  note: n{i}" for i in range(5)),
        "  note: and 2 more notes",
    ]
