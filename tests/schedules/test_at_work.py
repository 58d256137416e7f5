"""Schedules in use: in an optimizer, saved with it, plotted, and on the command line."""

from __future__ import annotations

import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from fastvar import schedules as s
from tests.support.cases import assert_same_bits
from tests.support.runs import assert_all_same_bits, gradients, state, variables
from tests.support.schedule_cases import EVERY

# In an optimizer.

NUMBERS = [
    (name, parameter)
    for name in ("SGD", "Adam", "AdamW")
    for parameter, p in getattr(fv.optimizers, name).parameters.items()
    if p.numeric
]


@pytest.mark.parametrize("zero", [False, True], ids=["", "from zero"])
@pytest.mark.parametrize(("name", "parameter"), NUMBERS)
def test_a_schedule_is_what_setting_the_number_before_each_step_is(name: str, parameter: str, zero: bool) -> None:
    if zero and parameter.startswith(("clip", "global", "adaptive", "loss")):
        return  # they are > 0
    if zero and parameter == "momentum":
        return  # when set to 0 by hand, it has no slot, and no velocity to continue
    values = [0.0 if zero else 0.5, 0.25, 0.75, 0.5, 0.0 if zero else 0.125, 0.125]
    schedule = s.PiecewiseConstantDecay(range(len(values) - 1), values)
    options = {"use_ema": True, "momentum": 0.5} if name == "SGD" else {"use_ema": True, "weight_decay": 0.25}
    make = getattr(fv.optimizers, name)
    scheduled, by_hand = (make(**{**options, parameter: value}) for value in (schedule, values[0]))
    ours, theirs, constant = variables(), variables(), variables()
    unchanged = make(**{**options, parameter: values[0]})
    for t, value in enumerate(values):
        setattr(by_hand, parameter, value)
        for optimizer, of in ((scheduled, ours), (by_hand, theirs), (unchanged, constant)):
            optimizer.apply(gradients(t), of)
        assert_all_same_bits(ours, theirs)
        assert_all_same_bits(state(scheduled), state(by_hand))
    moved = [*(v.numpy() for v in ours), *state(scheduled)], [*(v.numpy() for v in constant), *state(unchanged)]
    assert any((a != b).any() for a, b in zip(*moved, strict=True)), "the schedule changed nothing"


def test_groups_have_schedules_of_their_own() -> None:
    grouped, alone = variables(), variables()
    rate = s.Warmup(s.CosineDecay(0.5, 4), 2)
    optimizer = fv.optimizers.AdamW(0.25)
    optimizer.build(
        [*grouped[:2], {"variables": grouped[2:], "learning_rate": rate, "beta_1": s.Cyclic(0.5, 0.25, 2)}]
    )
    other = fv.optimizers.AdamW()
    for t in range(6):
        optimizer.apply(gradients(t), grouped)
        other.learning_rate, other.beta_1 = rate(t), s.Cyclic(0.5, 0.25, 2)(t)
        other.apply(gradients(t)[2:], alone[2:])
    assert_all_same_bits(grouped[2:], alone[2:])


# Saved with the optimizer.


class Training:
    """A training run whose schedule follows its own loss, nested, for a group or for all variables."""

    def __init__(self, where: str = "all") -> None:
        self.w = [fv.Variable(np.linspace(-2, 2, n), name=f"w{n}") for n in (3, 5)]
        self.plateau = s.ReduceOnPlateau(0.5, factor=0.75, patience=1, cooldown=1, min_delta=0.1)
        nested = s.Sequential([0.25, s.Warmup(self.plateau, 2)], [3])
        self.optimizer = fv.optimizers.Adam(
            0.125 if where == "group" else nested if where == "nested" else self.plateau
        )
        own = {"learning_rate": nested} if where == "group" else {}
        self.optimizer.build([{"variables": self.w[:1]}, {"variables": self.w[1:], **own}])

    def run(self, start: int, stop: int) -> Training:
        for t in range(start, stop):
            self.optimizer.apply([w.value * (1 + math.sin(t)) for w in self.w])
            self.plateau.record(float(sum((w.value**2).sum() for w in self.w)) + 3 * math.cos(t))
        return self

    def checkpoint(self) -> fv.Checkpoint:
        return fv.Checkpoint(variables=self.w, optimizer=self.optimizer)


def assert_same_run(a: Training, b: Training) -> None:
    assert a.plateau.get_config() == b.plateau.get_config()
    for x, y in zip([*a.w, *a.optimizer.variables], [*b.w, *b.optimizer.variables], strict=True):
        assert_same_bits(x.numpy(), y.numpy())


@pytest.mark.parametrize("where", ["all", "nested", "group"])
def test_a_restored_plateau_goes_on_as_the_same_object(where: str, tmp_path: Any) -> None:
    whole = Training(where).run(0, 8)
    path = whole.checkpoint().save(tmp_path / "run.h5")
    assert 0 < whole.plateau.value < 0.5
    resumed = Training(where).run(0, 3)
    resumed.checkpoint().restore(path)
    assert_same_run(resumed, whole)
    assert_same_run(resumed.run(8, 20), whole.run(8, 20))
    before = resumed.optimizer.groups[1].learning_rate
    resumed.plateau.value = 0.0078125
    assert resumed.optimizer.groups[1].learning_rate == 0.0078125 != before


@pytest.mark.parametrize("where", ["all", "nested", "group"])
def test_a_pickled_run_goes_on_with_its_plateau(where: str) -> None:
    whole = Training(where).run(0, 8)
    assert_same_run(pickle.loads(pickle.dumps(whole)).run(8, 20), whole.run(8, 20))


def test_a_restore_that_fails_leaves_the_plateau_alone(tmp_path: Any) -> None:
    path = Training().run(0, 8).checkpoint().save(tmp_path / "run.h5")
    other = Training().run(0, 5)
    before = other.plateau.get_config(), other.optimizer.learning_rate
    wrong = fv.Checkpoint(variables=other.w, optimizer=other.optimizer, more=fv.Variable([1.0]))
    with pytest.raises(ValueError, match="missing in the file: variables/more"):
        wrong.restore(path)
    assert (other.plateau.get_config(), other.optimizer.learning_rate) == before


def test_a_saved_state_out_of_range_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    monkeypatch.setitem(training.plateau._parameters, "wait", -1)  # as a file of another program may hold
    path = training.checkpoint().save(tmp_path / "run.h5")
    other = Training().run(0, 5)
    before = other.plateau.get_config()
    with pytest.raises(ValueError, match="wait must be >= 0, got -1"):
        other.checkpoint().restore(path)
    assert other.plateau.get_config() == before


def test_another_schedule_is_replaced_and_the_old_object_left_alone(tmp_path: Any) -> None:
    training = Training()
    path = training.checkpoint().save(tmp_path / "run.h5")
    other, decay = Training(), s.LinearDecay(0.75, 10)
    other.optimizer.learning_rate = decay
    with pytest.warns(
        RuntimeWarning, match=r"learning_rate: LinearDecay\(.*\) here, ReduceOnPlateau\(.*\) in the"
    ):
        other.checkpoint().restore(path)
    assert other.optimizer.learning_rate == 0.5
    assert decay(0) == 0.75


def test_a_function_inside_a_schedule_stays_that_of_the_program(tmp_path: Any) -> None:
    def joined(function: Any, end: float) -> Any:
        return s.Sequential([s.Warmup(function, 2), end], [10])

    training = Training()
    training.optimizer.learning_rate = joined(lambda t: 0.5, 0.125)
    path = training.checkpoint().save(tmp_path / "run.h5")
    other = Training()
    with pytest.raises(
        ValueError, match=r"Adam: learning_rate\.schedules\[0\]\.schedule was a function when it was saved"
    ):
        other.checkpoint().restore(path)
    schedule = other.optimizer.learning_rate = joined(lambda t: 0.25, 0.0)
    schedule = other.optimizer._parameters["learning_rate"]
    with pytest.warns(RuntimeWarning, match=r"learning_rate\.schedules\[1\]: 0\.0 here, 0\.125 in the file"):
        other.checkpoint().restore(path)
    assert [schedule(t) for t in (2, 10)] == [0.25, 0.125]


# Plotted.


@pytest.fixture
def axes() -> Any:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot.subplots()[1]
    pyplot.close("all")


@pytest.mark.parametrize("row", EVERY, ids=lambda row: row.id)
def test_plot_draws_the_values(row: Any, axes: Any) -> None:
    ours = row.make()
    assert ours.plot(ax=axes) is axes
    x, y = axes.lines[0].get_data()
    assert len(x) > 1
    assert (x[0], x[-1]) == (0, ours.horizon - 1)
    assert list(y) == [ours(t) for t in x]
    assert ours.horizon > max(row.bends[:2], default=0)
    assert "".join(axes.get_title().split()) == "".join(repr(ours).split())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "value")
    assert axes.xaxis.get_gridlines()[0].get_visible()


@pytest.mark.parametrize("steps", [2, 3, 23])
def test_ticks_of_steps_are_whole_numbers(steps: int, axes: Any) -> None:
    fv.schedules.LinearDecay(0.1, decay_steps=20).plot(steps, axes)
    assert all(tick == round(tick) for tick in axes.get_xticks())
    own = [0.0, 0.5]
    axes.set_xticks(own)
    assert [*fv.schedules.LinearDecay(0.1, decay_steps=20).plot(steps, axes).get_xticks()] == own


def test_plot_of_many_steps_keeps_to_whole_ones(axes: Any) -> None:
    s.CosineDecay(0.1, 10).plot(10**9, ax=axes)
    x = list(axes.lines[0].get_xdata())
    assert (x[0], x[-1], len(x)) == (0, 10**9 - 1, len(set(x)))
    assert all(step == int(step) for step in x)
    with pytest.raises(ValueError, match="CosineDecay: steps must be >= 1, got 0"):
        s.CosineDecay(0.1, 10).plot(0, ax=axes)
    assert s.CosineDecay(0.1, 10).plot(5) is not axes  # a figure of its own


# On the command line.


def command(*arguments: str, folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {before}\nfrom fastvar.__main__ import main; main()"
    environment = {k: v for k, v in os.environ.items() if k not in {"MPLBACKEND", "DISPLAY", "WAYLAND_DISPLAY"}}
    environment["PYTHONPATH"] = str(Path(fv.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code, "plot-schedule", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )


def test_plot_schedule_writes_what_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = "Warmup(fv.schedules.CosineDecay(0.1, decay_steps=1_000), 50)"
    done = command(text, "--steps", "100", "--output", "out.png", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("warmup_steps=50): out.png\n")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_plot_schedule_without_a_display_writes_a_file_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = command("LinearDecay(0.1, 100)", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "schedule.png" in done.stdout
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LinearDecay(0.1, -1)"], "LinearDecay: decay_steps must be > 0, got -1"),
        (["LinearDecay(0.1, 10)", "--steps", "0"], "LinearDecay: --steps must be >= 1, got 0"),
        (["open('touched', 'w')"], "schedule must be one of CosineDecay, .*, got open"),
        (["LinearDecay(0.1, 10)", "--output", "missing/out.png"], "missing/out.png: No such file or directory"),
        (["LinearDecay(0.1, 10)", "--output", "out.nonsense"], "nonsense"),
    ],
)
def test_plot_schedule_tells_what_is_wrong(arguments: list[str], message: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = command(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_plot_schedule_without_matplotlib_tells_what_to_install(tmp_path: Path) -> None:
    done = command("LinearDecay(0.1, 10)", folder=tmp_path, before="sys.modules['matplotlib'] = None")
    assert done.returncode == 2
    assert done.stderr.endswith('LinearDecay: plot needs matplotlib: pip install "matplotlib>=3.9"\n')


@pytest.mark.parametrize("make", [fv.optimizers.Adam, lambda rate: fv.optimizers.Adam(weight_decay=rate)])
def test_a_class_instead_of_a_schedule_is_refused_at_once(make: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a real number, got <class .*CosineDecay"):
        make(fv.schedules.CosineDecay)
