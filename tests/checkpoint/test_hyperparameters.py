"""Which hyperparameters hold after a restore, which warnings it gives, and which slots follow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from fastvar.hyper import integer
from tests.support.cases import CASES, IDS

Adam, SGD = fv.optimizers.Adam, fv.optimizers.SGD


def weights() -> list[fv.Variable]:
    matrix = np.linspace(-1, 1, 12).reshape(3, 4)
    return [fv.Variable(matrix, name="matrix"), fv.Variable(np.float32([1, -2]), name="vector")]


def train(optimizer: fv.Optimizer, variables: list[fv.Variable], steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        optimizer.apply([rng.normal(size=v.shape) for v in variables], variables)


def saved(path: Path, optimizer: fv.Optimizer, steps: int = 3, group: dict[str, Any] | None = None) -> Path:
    variables = weights()
    optimizer.build(variables if group is None else [variables[0], {"variables": variables[1:], **group}])
    train(optimizer, variables, steps, 0)
    return Path(fv.Checkpoint(variables=variables, optimizer=optimizer).save(path))


def everything(optimizer: fv.Optimizer, variables: list[fv.Variable]) -> Any:
    arrays = [v.numpy().tobytes() for v in [*variables, *optimizer.variables]]
    groups = [{k: repr(v) for k, v in group._own.items()} for group in optimizer.groups]
    return arrays, [*optimizer._state.slots], repr(optimizer.get_config()), groups, optimizer._steps


def test_the_example_of_the_issue(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", Adam(0.01))
    for choice, expected in (("saved", (0.01, None)), ("program", (0.001, 1.0))):
        variables, optimizer = weights(), Adam(0.001, clipnorm=1)
        checkpoint = fv.Checkpoint(variables=variables, optimizer=optimizer)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            report = checkpoint.restore(path, hyperparameters=choice)  # type: ignore[arg-type]
        assert (optimizer.learning_rate, optimizer.clipnorm) == expected
        assert report.hyperparameters == [
            "optimizer.learning_rate: 0.001 here, 0.01 in the file",
            "optimizer.clipnorm: 1.0 here, None in the file",
        ]
        assert all(line in str(report) for line in report.hyperparameters)
        assert optimizer.iterations == 3
        if choice == "saved":
            assert len(told) == 1
            assert all(line in str(told[0].message) for line in report.hyperparameters)
            assert Path(told[0].filename) == Path(__file__)
        else:
            assert not told


def test_what_the_program_has_not_set_changes_without_a_warning_but_is_listed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", Adam(0.01, beta_1=0.5), group={"weight_decay": 0.5})
    variables, optimizer = weights(), Adam()
    optimizer.build([variables[0], {"variables": variables[1:]}])
    report = fv.Checkpoint(variables=variables, optimizer=optimizer).restore(path)
    assert report.hyperparameters == [
        "optimizer.learning_rate: 0.001 here, 0.01 in the file",
        "optimizer.beta_1: 0.9 here, 0.5 in the file",
        "optimizer.groups[1].weight_decay: unset here, 0.5 in the file",
    ]
    assert optimizer.groups[1].weight_decay == 0.5


def test_the_same_program_is_told_nothing(tmp_path: Path) -> None:
    def program() -> Any:
        plateau = fv.schedules.ReduceOnPlateau(0.5, factor=0.5, patience=1)
        inner = Adam(fv.schedules.Sequential([plateau, fv.schedules.CosineDecay(0.1, 9)], [100]), clipnorm=1.0)
        optimizer = fv.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=2)
        return plateau, optimizer, weights()

    plateau, optimizer, variables = program()
    train(optimizer, variables, 5, 0)
    for _ in range(3):
        plateau.record(1.0)
    path = fv.Checkpoint(variables=variables, optimizer=optimizer).save(tmp_path / "a.h5")
    for choice in ("saved", "program"):
        again, other, here = program()
        report = fv.Checkpoint(variables=here, optimizer=other).restore(path, hyperparameters=choice)
        assert report.hyperparameters == []
        assert again() == plateau() == 0.125  # state, not a choice of the program
        assert other.learning_rate == 0.125
        assert other.dynamic_scale == optimizer.dynamic_scale
        again.record(1.0)
        assert other.learning_rate == 0.0625


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda o: setattr(o, "learning_rate", 0.25), "learning_rate: 0.25 here, 0.01 in the file"),
        (lambda o: setattr(o, "nonfinite", "skip"), "nonfinite: 'skip' here, 'ignore' in the file"),
        (lambda o: setattr(o, "learning_rate", lambda step: 0.25), "learning_rate: a function here, 0.01 in the"),
        (
            lambda o: setattr(o, "learning_rate", fv.schedules.CosineDecay(0.25, 10)),
            "learning_rate: CosineDecay(initial_learning_rate=0.25, decay_steps=10",
        ),
        (lambda o: setattr(o.groups[1], "beta_1", 0.5), "groups[1].beta_1: 0.5 here, 0.75 in the file"),
        (lambda o: setattr(o.groups[0], "epsilon", 0.5), "groups[0].epsilon: 0.5 here, unset in the file"),
    ],
)
def test_what_was_set_later_counts_too(change: Any, line: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", Adam(0.01), group={"beta_1": 0.75})
    for choice in ("saved", "program"):
        variables, optimizer = weights(), Adam(0.01)
        optimizer.build([variables[0], {"variables": variables[1:], "beta_1": 0.75}])
        change(optimizer)
        before = everything(optimizer, variables)[2:4]
        checkpoint = fv.Checkpoint(variables=variables, optimizer=optimizer)
        if choice == "program":
            report = checkpoint.restore(path, hyperparameters="program")
            assert everything(optimizer, variables)[2:4] == before
        else:
            with pytest.warns(RuntimeWarning) as told:
                report = checkpoint.restore(path)
            assert len(told) == 1
            assert f"optimizer.{line}" in str(told[0].message)
            assert everything(optimizer, variables)[2:4] != before
        assert len(report.hyperparameters) == 1
        assert f"optimizer.{line}" in report.hyperparameters[0]


def test_inside_schedules_and_inner_optimizers(tmp_path: Path) -> None:
    def make(steps: int, momentum: float) -> Any:
        inner = SGD(fv.schedules.Warmup(fv.schedules.CosineDecay(0.5, steps), 5), momentum=momentum)
        return fv.optimizers.LossScaleOptimizer(inner)

    path = saved(tmp_path / "a.h5", make(100, 0.5))
    optimizer = make(200, 0.75)
    with pytest.warns(RuntimeWarning, match="momentum"):
        report = fv.Checkpoint(variables=weights(), optimizer=optimizer).restore(path)
    assert report.hyperparameters == [
        "optimizer.inner_optimizer.learning_rate.schedule.decay_steps: 200 here, 100 in the file",
        "optimizer.inner_optimizer.momentum: 0.75 here, 0.5 in the file",
    ]
    assert optimizer.inner_optimizer.momentum == 0.5
    optimizer = make(200, 0.75)
    fv.Checkpoint(variables=weights(), optimizer=optimizer).restore(path, hyperparameters="program")
    assert optimizer.inner_optimizer.momentum == 0.75
    assert optimizer.inner_optimizer._parameters["learning_rate"].schedule.decay_steps == 200
    assert optimizer.inner_optimizer.iterations == 3


def test_a_warning_that_is_an_error_leaves_all_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", SGD(0.01, momentum=0.5))
    for build in (True, False):
        variables, optimizer = [fv.Variable(v * 0, name=v.name) for v in weights()], SGD(0.5)
        if build:
            optimizer.build(variables)
        before = everything(optimizer, variables)
        with pytest.raises(RuntimeWarning, match="learning_rate"):
            fv.Checkpoint(variables=variables, optimizer=optimizer).restore(path)
        assert everything(optimizer, variables) == before


def test_manager_and_saver_take_the_choice(tmp_path: Path) -> None:
    first = Adam(0.01)
    variables = weights()
    train(first, variables, 2, 0)
    with fv.CheckpointManager(fv.Checkpoint(variables=variables, optimizer=first), tmp_path) as manager:
        manager.save()
    for at_first, later, expected in (
        ("program", None, 0.001),
        ("saved", "program", 0.001),
        ("program", "saved", 0.01),
    ):
        optimizer = Adam(0.001)
        checkpoint = fv.Checkpoint(variables=variables, optimizer=optimizer)
        with fv.CheckpointManager(checkpoint, tmp_path, hyperparameters=at_first) as manager:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                manager.restore_or_initialize(hyperparameters=later)
            assert [Path(w.filename).name for w in told] == [Path(__file__).name] * (expected == 0.01)
            with pytest.raises(ValueError, match="hyperparameters must be 'saved' or 'program', got 'x'"):
                manager.restore_or_initialize(hyperparameters="x")  # type: ignore[arg-type]
        assert optimizer.learning_rate == expected
    with pytest.raises(ValueError, match="CheckpointManager: hyperparameters must be"):
        fv.CheckpointManager(checkpoint, tmp_path, hyperparameters="file")  # type: ignore[arg-type]
    saver = fv.Saver(variables)
    path = saver.save(tmp_path / "other")
    assert saver.restore(path, hyperparameters="program").hyperparameters == []
    with pytest.raises(ValueError, match="Checkpoint: hyperparameters must be"):
        saver.restore(path, hyperparameters=True)


@pytest.mark.parametrize("build", [True, False], ids=["built", "not built"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_slots_follow_the_hyperparameters_of_the_file(case: Any, build: bool, tmp_path: Path) -> None:
    """Restore into an optimizer with only defaults. The oracle is an uninterrupted run."""
    options = {"use_ema": True, "gradient_accumulation_steps": 2}
    whole, first, second = case.make(**options), case.make(**options), type(case.make())()
    ours, here = weights(), weights()
    train(whole, ours, 3, 0)
    train(whole, ours, 4, 1)
    path = saved(tmp_path / "a.h5", first)
    if build:
        second.build(here)
    fv.Checkpoint(variables=here, optimizer=second).restore(path)
    train(second, here, 4, 1)
    assert everything(second, here) == everything(whole, ours)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_slots_that_the_file_has_not_are_gone(case: Any, tmp_path: Path) -> None:
    """Restore into an optimizer with more slots than the file's: it becomes like the file's, too."""
    whole, here = case.make(), weights()
    path = saved(tmp_path / "a.h5", whole)
    second = case.make(use_ema=True, gradient_accumulation_steps=2)
    second.build(here)
    with pytest.warns(RuntimeWarning, match="use_ema: True here, False in the file"):
        fv.Checkpoint(variables=here, optimizer=second).restore(path)
    train(second, here, 4, 1)
    ours, again = weights(), case.make()
    train(again, ours, 3, 0)
    train(again, ours, 4, 1)
    assert everything(second, here) == everything(again, ours)


SLOTS: list[tuple[Any, dict[str, Any], dict[str, Any], str, str]] = [
    (SGD, {"momentum": 0.9}, {}, "momentum: 0.0 here, 0.9 in the file; in the file", "momentum"),
    (SGD, {}, {"momentum": 0.9}, "momentum: 0.9 here, 0.0 in the file; here", "momentum"),
    (SGD, {"use_ema": True}, {}, "use_ema: False here, True in the file; in the file", "average"),
    (Adam, {"amsgrad": True}, {}, "amsgrad: False here, True in the file; in the file", "velocity_hat"),
    (Adam, {}, {"amsgrad": True}, "amsgrad: True here, False in the file; here", "velocity_hat"),
    (
        fv.optimizers.RMSprop,
        {"centered": True},
        {},
        "centered: False here, True in the file; in the file",
        "average_gradient",
    ),
    (
        fastvar.torch.SGD,
        {"momentum": 0.5},
        {},
        "momentum: 0.0 here, 0.5 in the file; in the file",
        "momentum_buffer",
    ),
    (
        lambda **options: fv.optimizers.LossScaleOptimizer(SGD(**options)),
        {"momentum": 0.5},
        {},
        "inner_optimizer.momentum: 0.0 here, 0.5 in the file; in the file",
        "momentum",
    ),
]


@pytest.mark.parametrize("build", [True, False], ids=["built", "not built"])
@pytest.mark.parametrize("row", range(len(SLOTS)))
def test_the_error_says_which_hyperparameter_wants_which_slot(row: int, build: bool, tmp_path: Path) -> None:
    make, there, ours, line, slot = SLOTS[row]
    path = saved(tmp_path / "a.h5", make(**there))
    variables, optimizer = [fv.Variable(v * 0, name=v.name) for v in weights()], make(**ours)
    if build:
        optimizer.build(variables)
    checkpoint = fv.Checkpoint(variables=variables, optimizer=optimizer)
    before = everything(optimizer, variables)
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        checkpoint.restore(path, hyperparameters="program")
    assert f"optimizer.{line} it wants the slot {slot!r}" in str(caught.value)
    assert everything(optimizer, variables) == before
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        checkpoint.restore(path)
    reference, same = make(**there), weights()
    train(reference, same, 3, 0)
    assert everything(optimizer, variables) == everything(reference, same)


def test_the_momentum_of_a_group_wants_a_slot(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", SGD(0.5), group={"momentum": 0.5})
    variables, optimizer = weights(), SGD(0.5)
    optimizer.build([variables[0], {"variables": variables[1:]}])
    checkpoint = fv.Checkpoint(variables=variables, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"groups\[1\]\.momentum: unset here, 0\.5 .* wants the slot 'momentum'"):
        checkpoint.restore(path, hyperparameters="program")
    checkpoint.restore(path)
    assert optimizer.groups[1].momentum == 0.5
    assert optimizer.slot(variables[1], "momentum").any()


def test_accumulation_that_has_begun_cannot_be_counted_otherwise(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", SGD(gradient_accumulation_steps=2))
    optimizer = SGD(gradient_accumulation_steps=4)
    checkpoint = fv.Checkpoint(variables=weights(), optimizer=optimizer)
    with pytest.raises(ValueError, match="gradient_accumulation_steps: 4 here, 2 in the file; it is fixed"):
        checkpoint.restore(path, hyperparameters="program")
    assert not optimizer.variables
    before_the_first = SGD(gradient_accumulation_steps=2)
    before_the_first.build(weights())
    path = fv.Checkpoint(optimizer=before_the_first).save(tmp_path / "b.h5")
    fv.Checkpoint(optimizer=optimizer, variables=weights()).restore(path, partial=True, hyperparameters="program")
    assert optimizer.gradient_accumulation_steps == 4


def test_another_inner_optimizer_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", fv.optimizers.LossScaleOptimizer(SGD()))
    optimizer = fv.optimizers.LossScaleOptimizer(fv.optimizers.Lion())
    with pytest.raises(ValueError, match="saved inner_optimizer is of class SGD"):
        fv.Checkpoint(variables=weights(), optimizer=optimizer).restore(path)
    assert type(optimizer.inner_optimizer) is fv.optimizers.Lion


def test_values_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    first = Adam(clipnorm=1.0)
    path = saved(tmp_path / "a.h5", first)
    first._parameters["clipvalue"] = 1.0
    path = fv.Checkpoint(variables=weights(), optimizer=first).save(path, overwrite=True)
    optimizer = Adam()
    with pytest.raises(ValueError, match="only one of clipnorm and clipvalue"):
        fv.Checkpoint(variables=weights(), optimizer=optimizer).restore(path)
    assert (optimizer.clipnorm, optimizer.variables) == (None, [])


def test_slots_that_are_no_longer_wanted_are_not_saved(tmp_path: Path) -> None:
    first = SGD(0.5, use_ema=True)
    variables = weights()
    train(first, variables, 2, 0)
    first.use_ema = False
    path = fv.Checkpoint(variables=variables, optimizer=first).save(tmp_path / "a.h5")
    report = fv.Checkpoint(variables=weights(), optimizer=SGD(0.5)).restore(path)
    assert sorted(report.taken) == ["optimizer", "variables/matrix", "variables/vector"]


def test_slots_of_options_set_since_the_last_step(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.h5", SGD(0.5, use_ema=True))
    variables, optimizer = weights(), SGD(0.5)
    optimizer.build(variables)
    optimizer.use_ema = True  # the next step makes its slot
    fv.Checkpoint(variables=variables, optimizer=optimizer).restore(path)
    assert optimizer.slot(variables[0], "average").any()


def test_state_of_schedules_of_ones_own(tmp_path: Path) -> None:
    class Counting(fv.schedules.LearningRateSchedule):
        limit: int = integer(default=5, low=1)
        count: int = integer(default=0, low=0, kw_only=True)
        stateful = ("count",)

        def __call__(self, step: int) -> float:
            return 1 / (1 + min(self.count, self.limit))

    there, here = Counting(7), Counting(9)
    there._parameters["count"] = 8
    path = saved(tmp_path / "a.h5", SGD(there))
    fv.Checkpoint(variables=weights(), optimizer=SGD(here)).restore(path, hyperparameters="program")
    assert (here.limit, here.count) == (9, 8)
