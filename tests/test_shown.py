"""What objects show at a prompt and in a notebook."""

from __future__ import annotations

import copy
import html.parser
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import fastvar as fv
from fastvar.tables import MOST_ROWS, Table
from tests.support.processes import output

EMPTY = {"br", "hr", "img", "path", "use", "defs"}
SCHEDULE = fv.schedules.Warmup(fv.schedules.CosineDecay(0.1, decay_steps=10), warmup_steps=5)


class Net(fv.Module):
    def __init__(self) -> None:
        self.kernel = fv.Variable(np.ones((30, 10), np.float32), regularizer=fv.regularizers.L2(0.01))
        self.bias = fv.Variable(np.zeros(10), trainable=False)


class Reader(html.parser.HTMLParser):
    """Reads HTML, checks that every element is closed, and keeps the cells of tables, the text and the styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.styles: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.styles += [value for name, value in attributes if name in ("style", "color", "fill") and value]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.styles += [value for name, value in attributes if name in ("style", "color", "fill") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def read(thing: Any) -> Reader:
    return Reader(thing._repr_html_())


@pytest.fixture
def manager(tmp_path: Path) -> fv.CheckpointManager:
    """A manager with three checkpoints, one without a metric."""
    manager = fv.CheckpointManager(
        fv.Checkpoint(Net()), tmp_path, monitor="loss", keep_checkpoint_every_n_steps=100
    )
    manager.save(100, metrics={"loss": 0.5, "<b>": 2})
    manager.save(200)
    manager.save(300, metrics={"loss": 0.25, "<b>": 3})
    return manager


def test_a_table_prints_aligned_columns() -> None:
    table = Table("title", ("name", "size", "on"), [("a", 1000, True), ("long name", None, False)], "end")
    assert repr(table).splitlines() == [
        "title",
        "name        size  on",
        "---------  -----  ---",
        "a          1,000  yes",
        "long name         no",
        "end",
    ]
    assert read(table).cells == ["name", "size", "on", "a", "1,000", "yes", "long name", "", "no"]


def test_a_long_table_shows_its_beginning_and_its_end() -> None:
    table = Table("", ("n",), [(str(i),) for i in range(1000)])
    lines = repr(table).splitlines()
    assert lines[:2] == ["n", "-" * len("... 940 more")]
    assert (lines[2], lines[2 + MOST_ROWS // 2], lines[-1]) == ("0", "... 940 more", "999")
    assert len(read(table).cells) == 1 + MOST_ROWS + 1


def test_an_empty_table_prints_its_headings() -> None:
    assert repr(Table("title", ("a", "b"))).splitlines() == ["title", "a  b", "-  -"]


def test_all_text_is_escaped() -> None:
    mark = "<script>&"
    table = Table(mark, (mark, ""), [(mark, mark)], mark)
    assert "<script" not in table._repr_html_()
    assert read(table).text.count(mark) == 5
    assert read(fv.Variable([1.0], name=mark)).text.count(mark) == 1


@pytest.mark.parametrize(
    "thing", [fv.Variable(np.ones(4)), Net(), fv.optimizers.Adam(SCHEDULE)], ids=lambda x: type(x).__name__
)
def test_a_notebook_shows_no_colour_of_its_own(thing: Any) -> None:
    styles = " ".join(read(thing).styles)
    assert not re.search(r"#[0-9a-f]{3}|rgb|background|(?<!-)color: (?!inherit)", styles)


def test_a_small_variable_shows_its_values() -> None:
    shown = read(fv.Variable([[1.0, 2.5]], name="w")).text
    assert shown.startswith("Variable 'w'")
    assert "[[1. , 2.5]]" in shown


def test_a_large_variable_shows_its_range() -> None:
    kernel = fv.Variable(np.arange(1000, dtype=np.float32), regularizer=fv.regularizers.L2(0.5), trainable=False)
    cells = read(kernel).cells
    shown = dict(zip(cells[::2], cells[1::2], strict=True))
    assert shown == {
        "shape": "(1000,)",
        "dtype": "float32",
        "bytes": "4,000",
        "trainable": "no",
        "regularizer": "L2(l2=0.5)",
        "min": "0",
        "mean": "499.5",
        "max": "999",
    }


@pytest.mark.parametrize("dtype", ["bool", "complex64", "int8", "float16", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (50, 50)], ids=str)
def test_a_variable_of_any_kind_is_shown(dtype: str, shape: tuple[int, ...]) -> None:
    assert dtype in read(fv.Variable(np.ones(shape, dtype))).cells
    assert "inf" in read(fv.Variable(np.full(1000, np.inf))).cells


def test_a_summary_lists_the_variables_and_their_totals() -> None:
    net = Net()
    assert repr(net.summary()).splitlines() == [
        "Net",
        "name    shape     dtype    trainable  bytes",
        "------  --------  -------  ---------  -----",
        "kernel  (30, 10)  float32  yes        1,200",
        "bias    (10,)     float64  no            80",
        "2 variables, 310 parameters (300 trainable), 1.28 kB",
    ]
    assert net._repr_html_() == net.summary()._repr_html_()
    assert read(net).cells[5:10] == ["kernel", "(30, 10)", "float32", "yes", "1,200"]


@pytest.mark.parametrize("name", [*fv.optimizers.__all__])
def test_every_optimizer_is_shown(name: str) -> None:
    cls = getattr(fv.optimizers, name)
    optimizer = cls(fv.optimizers.SGD(0.5)) if name == "LossScaleOptimizer" else cls()
    assert "not built yet" in read(optimizer).text
    optimizer.build([fv.Variable(np.ones((4, 2)))])
    shown = read(optimizer)
    assert shown.text.startswith(f"{name}, 0 iterations")
    assert "1 variable in 1 group" in shown.text


def test_there_is_a_column_of_schedules_if_there_is_one() -> None:
    assert "schedule" in read(fv.optimizers.Adam(SCHEDULE)).cells
    assert "schedule" not in read(fv.optimizers.Adam()).cells


def test_an_optimizer_shows_values_schedules_and_groups() -> None:
    net = Net()
    optimizer = fv.optimizers.Adam(SCHEDULE, clipnorm=2.0)
    assert [*net.named_variables()] == ["kernel", "bias"]  # this names them
    optimizer.build([{"variables": net.kernel, "beta_1": 0.5}, {"variables": net.bias}])
    cells = read(optimizer).cells
    assert cells[:6] == ["hyperparameter", "value", "schedule", "learning_rate", "0", repr(SCHEDULE)]
    assert cells[cells.index("clipnorm") + 1] == "2"
    assert cells[cells.index("groups[0].beta_1") + 1] == "0.5"
    assert repr(optimizer.groups[0]).splitlines() == ["Group of 1 variable: 'kernel'", "beta_1  0.5"]
    assert "with the hyperparameters of the optimizer" in repr(optimizer.groups[1])
    assert "beta_1" in read(optimizer.groups[0]).cells


def test_a_group_of_pytorch_shows_values_and_schedules() -> None:
    optimizer = fv.torch.SGD([{"params": [fv.Variable([1.0], name="w")], "lr": SCHEDULE}], 0.1, nesterov=False)
    cells = read(optimizer.param_groups[0]).cells
    assert cells[cells.index("lr") :][:3] == ["lr", "0.0", repr(SCHEDULE)]
    lines = [" ".join(line.split()) for line in repr(optimizer.param_groups[0]).splitlines()]
    assert lines[:2] == ["ParamGroup of 1 variable: 'w'", f"lr 0.0 {SCHEDULE!r}"]
    assert "nesterov False" in lines


def test_a_schedule_comes_back_as_it_was_given() -> None:
    w = fv.Variable([1.0])
    optimizer = fv.optimizers.Adam(SCHEDULE, weight_decay=0.1)
    assert optimizer.schedules == {"learning_rate": SCHEDULE}
    assert optimizer.schedules["learning_rate"] is SCHEDULE
    optimizer.build([{"variables": [w], "beta_1": (decay := lambda step: 0.5)}])
    assert optimizer.groups[0].schedules == {"learning_rate": SCHEDULE, "beta_1": decay}
    optimizer.groups[0].learning_rate = 0.5
    assert optimizer.groups[0].schedules == {"beta_1": decay}
    optimizer.learning_rate = 0.5
    assert optimizer.schedules == {}


def test_a_schedule_comes_back_after_a_restore(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    saved = fv.optimizers.Adam(SCHEDULE)
    saved.apply([[1.0]], [w])
    path = fv.Checkpoint(w=w, optimizer=saved).save(tmp_path / "a.h5")
    for schedule in (copy.deepcopy(SCHEDULE), 0.5):
        optimizer = fv.optimizers.Adam(schedule)
        if schedule == 0.5:
            with pytest.warns(RuntimeWarning, match="learning_rate"):
                fv.Checkpoint(w=w, optimizer=optimizer).restore(path)
        else:
            fv.Checkpoint(w=w, optimizer=optimizer).restore(path)
        assert repr(optimizer.schedules) == repr({"learning_rate": SCHEDULE})
        assert optimizer.learning_rate == SCHEDULE(1)


def test_a_manager_shows_its_folder(manager: fv.CheckpointManager, tmp_path: Path) -> None:
    assert repr(manager).splitlines() == [
        f"CheckpointManager of {tmp_path}",
        "checkpoints  3 files",
        "latest       ckpt-3.h5, step 300",
        "best         ckpt-3.h5, step 300",
        "keeps        the newest 5, one in 100 steps, the best 1 by loss (min)",
    ]


SHOWN = {  # what shows its table: the first line and the first cells
    "manager": ("CheckpointManager of ", ["checkpoints", "3 files", "latest", "ckpt-3.h5, step 300"]),
    "report": ("/ckpt-1.h5, step 100: 2 restored", ["restored", "variables/kernel, variables/bias"]),
    "checkpoint": ("Checkpoint of 2 variables", ["variables", "kernel, bias", "optimizer", "Adam, 0 iterations"]),
    "slices": ("IndexedSlices of 3 rows", ["indices", "[7, 0, 7]", "values", "(3, 2) float32"]),
    "check": ("GradientCheck: 1 derivative agrees, loss 4", ["the worst", "gradient", "by differences"]),
    "result": ("LBFGS converged after ", ["message"]),
    "group": ("Group of 1 variable: variable 0", ["beta_1", "0.5", ""]),
    "torch group": ("ParamGroup of 1 variable: variable 0", ["lr", "0.5", ""]),
    "history": ("", ["checkpoint", "step", "saved", "loss", "<b>"]),
}


@pytest.fixture
def shown(manager: fv.CheckpointManager) -> dict[str, Any]:
    pytest.importorskip("scipy")
    w = fv.Variable([2.0], name="w")
    lbfgs, adam = fv.optimizers.LBFGS(), fv.optimizers.Adam()
    checkpoint = fv.Checkpoint(Net(), optimizer=fv.optimizers.Adam(), rng=np.random.default_rng(0))
    check = fv.check_gradients(lambda: ((w.value**2).sum(), [2 * w.value]), [w])
    lbfgs.minimize(lambda: ((w.value**2).sum(), [2 * w.value]), [w])
    adam.build([{"variables": [fv.Variable([1.0])], "beta_1": 0.5}])
    return {
        "manager": manager,
        "report": fv.Checkpoint(Net()).restore(manager.checkpoints[0]),
        "checkpoint": checkpoint,
        "slices": fv.IndexedSlices(np.ones((3, 2), np.float32), [7, 0, 7]),
        "check": check,
        "result": lbfgs.result,
        "group": adam.groups[0],
        "torch group": fv.torch.SGD([fv.Variable([1.0])], 0.5).param_groups[0],
        "history": manager.history(),
    }


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_prompt_and_a_notebook_show_the_same(name: str, shown: dict[str, Any]) -> None:
    title, cells = SHOWN[name]
    lines = repr(shown[name]).splitlines()
    assert len(lines) > 1
    assert title in lines[0]
    page = Reader(re.sub(r"<svg.*</svg>", "", shown[name]._repr_html_(), flags=re.DOTALL))
    assert page.cells[: len(cells)] == cells
    assert lines[0] in page.text
    words = " ".join(" ".join(lines).split())
    assert all(" ".join(cell.split()) in words for cell in page.cells)
    assert not re.search(r"#[0-9a-f]{3}|rgb|background|(?<!-)color: (?!inherit)", " ".join(page.styles))


def test_a_manager_without_its_folder_is_shown(manager: fv.CheckpointManager, tmp_path: Path) -> None:
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert "cannot be read" in repr(manager)


def test_a_restore_prints_its_report(manager: fv.CheckpointManager) -> None:
    report = fv.Checkpoint(Net()).restore(manager.checkpoints[-1])
    assert repr(report) == str(report)
    assert "2 restored" in repr(report)


def test_a_history_has_columns(manager: fv.CheckpointManager) -> None:
    history = manager.history()
    assert history.step.tolist() == [100, 200, 300]
    assert history.paths == manager.checkpoints
    assert len(history) == 3
    np.testing.assert_array_equal(history.metrics["loss"], [0.5, np.nan, 0.25])
    assert (np.diff(history.time) >= 0).all()
    lines = repr(history).splitlines()
    assert lines[1].split() == ["checkpoint", "step", "saved", "loss", "<b>"]
    assert [line.split()[-1] for line in lines[3:]] == ["2", lines[4].split()[-1], "3"]


def test_an_empty_history(tmp_path: Path) -> None:
    history = fv.CheckpointManager(fv.Checkpoint(Net()), tmp_path).history()
    assert (len(history), history.metrics) == (0, {})
    assert repr(history).startswith("no checkpoints")
    assert "<svg" not in history._repr_html_()


def test_a_history_is_plotted(manager: fv.CheckpointManager) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = manager.history().plot(figure.add_subplot())
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines == {"loss": [[100, 0.5], [300, 0.25]], "<b>": [[100, 2], [300, 3]]}
    assert ax.get_xlabel() == "step"


def test_a_notebook_shows_a_history_with_its_curve(manager: fv.CheckpointManager) -> None:
    pytest.importorskip("matplotlib")
    page = manager.history()._repr_html_()
    assert page.count("<svg") == 1
    assert "currentColor" in page
    assert not re.search(r"#(000000|ffffff|010203)", page)
    assert "<b>" not in page
    drawn = ElementTree.fromstring(re.findall(r"<svg.*</svg>", page, flags=re.DOTALL)[0])
    texts = [element.text or "" for element in drawn.iter() if not element.tag.endswith("style")]
    assert not "".join(texts).strip()  # JupyterLab would show it where it does not trust a notebook
    assert Reader(re.sub(r"<svg.*</svg>", "", page, flags=re.DOTALL)).cells[:2] == ["checkpoint", "step"]


def test_without_matplotlib_a_history_is_a_table(
    manager: fv.CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    history = manager.history()
    assert "<svg" not in history._repr_html_()
    with pytest.raises(ImportError, match=r'History: plot needs matplotlib: pip install "matplotlib>=3.9"'):
        history.plot()


def test_showing_an_object_loads_nothing_more() -> None:
    code = "import fastvar as fv, sys; fv.Variable(1.0)._repr_html_(); print('matplotlib' in sys.modules)"
    assert output(code) == "False"
