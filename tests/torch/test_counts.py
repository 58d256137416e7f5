"""Each variable has a count of updates of its own, as in PyTorch: those in which it had a gradient."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastvar as fv
import fastvar.torch
from fastvar import kernels
from fastvar.kernels import reference
from tests.support.cases import contents
from tests.support.interrupts import check_at_instants
from tests.support.runs import SHAPES, assert_all_same_bits, gradients, state, variables
from tests.support.torch_cases import every_case, few_cases, make, one_of_each
from tests.support.torch_steps import STEPS, assert_close, follow

PRESENT: dict[str, Callable[[int, int], bool]] = {  # whether variable i has a gradient in step t
    "alternating": lambda t, i: (t + i) % 2 == 0,
    "late": lambda t, i: t >= 4 * i,
    "one at a time": lambda t, i: (t + 2) % len(SHAPES) == i,
    "a gap": lambda t, i: i != 1 or not 3 <= t < 9,
}
patterns = pytest.mark.parametrize("present", PRESENT.values(), ids=PRESENT)
NEUTRAL: list[dict[str, Any]] = [{}, {"nonfinite": "raise"}, {"global_clipnorm": 1e9}, {"adaptive_clipnorm": 1e9}]
NEUTRAL += [{"use_ema": True}, {"gradient_accumulation_steps": 2}]


@every_case
@patterns
def test_means_what_pytorch_means_where_gradients_are_missing(
    name: str, options: dict[str, Any], present: Callable[[int, int], bool]
) -> None:
    optimizer = follow(name, options, "float64", present=present)
    updates = [sum(present(t, i) for t in range(STEPS)) for i in range(len(SHAPES))]
    assert (optimizer.iterations - optimizer._state.numbers["missed"]).tolist() == updates


@one_of_each
@patterns
def test_groups_whose_hyperparameters_change(
    name: str, options: dict[str, Any], present: Callable[[int, int], bool]
) -> None:
    def groups(params: list[Any]) -> list[Any]:
        return [{"params": [params[0], params[3]]}, {"params": [params[1], params[2], params[4]], "lr": 0.05}]

    def change(t: int, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.875
            if "betas" in group:
                group["betas"] = (0.5 + t / 64, 0.875)

    follow(name, options, "float64", groups, change, present)


@pytest.mark.parametrize(("name", "options"), [("SGD", {"lr": 0.1}), ("Adagrad", {"lr": 0.1, "lr_decay": 0.5})])
def test_sparse_gradients(name: str, options: dict[str, Any]) -> None:
    ours = [fv.Variable(np.linspace(-1, 1, 12).reshape(4, 3)) for _ in range(2)]
    theirs = [torch.nn.Parameter(torch.tensor(v.value)) for v in ours]
    mine, other = make(name, ours, **options), getattr(torch.optim, name)(theirs, **options)
    with torch.sparse.check_sparse_tensor_invariants():
        for t in range(STEPS):
            rows = np.array([t % 4, (t + 1) % 4])
            values = np.cos(np.arange(6.0).reshape(2, 3) + t)
            for i, (v, p) in enumerate(zip(ours, theirs, strict=True)):
                absent = i == t % 3
                v.grad = None if absent else fv.IndexedSlices(values, rows)
                indices, shape = torch.tensor(rows)[None], (4, 3)
                sparse = torch.sparse_coo_tensor(indices, torch.tensor(values), shape)
                p.grad = None if absent else sparse
            mine.step()
            other.step()
            for v, p in zip(ours, theirs, strict=True):
                assert_close(v, p.detach(), 1, f"weights after step {t}")


@one_of_each
def test_frozen_variables_are_not_counted(name: str, options: dict[str, Any]) -> None:
    ours, twins = variables(), variables()
    first, second = make(name, ours, **options), make(name, twins, **options)
    for t in range(6):
        ours[1].trainable = t not in (1, 2, 4)
        grads = gradients(t)
        first.apply(grads)
        second.apply([None if i == 1 and t in (1, 2, 4) else g for i, g in enumerate(grads)])
    assert_all_same_bits([*ours, *state(first)], [*twins, *state(second)])
    assert first._state.numbers["missed"].tolist() == [0, 3, 0, 0, 0]
    for v in ours:
        v.trainable = False
    first.apply(gradients())  # of frozen variables alone
    assert_all_same_bits(ours, twins)
    assert first._state.numbers["missed"].tolist() == [1, 4, 1, 1, 1]


@one_of_each
def test_counts_on_every_path_of_a_step(name: str, options: dict[str, Any]) -> None:
    """With options that change how a step runs, but here not what it gives."""
    runs = []
    for more in NEUTRAL:
        given = variables()
        optimizer = make(name, given, **options, **more)
        for t in range(8):
            grads = [g if PRESENT["alternating"](t, i) else None for i, g in enumerate(gradients(t))]
            for _ in range(more.get("gradient_accumulation_steps", 1)):
                optimizer.apply(grads)
        runs.append([*given, *(optimizer.slot(v, slot) for slot in optimizer.slots for v in given)])
    for run in runs[1:]:
        assert_all_same_bits(run, runs[0])


def test_accumulation_counts_variables_that_had_a_gradient_in_any_call() -> None:
    v, w = fv.Variable([1.0]), fv.Variable([1.0])
    optimizer = fv.torch.Adam([v, w], gradient_accumulation_steps=3)
    for t in range(6):
        optimizer.apply([[1.0], [1.0] if t in (1, 2) else None])
    assert optimizer._state.numbers["missed"].tolist() == [0, 1]
    assert optimizer.iterations == 2


@one_of_each
def test_a_skipped_step_is_counted_nowhere(name: str, options: dict[str, Any]) -> None:
    whole, skipping = variables(), variables()
    first, second = make(name, whole, **options), make(name, skipping, **options, nonfinite="skip")
    for t in range(8):
        grads = [g if PRESENT["alternating"](t, i) else None for i, g in enumerate(gradients(t))]
        first.apply(grads)
        second.apply([None if i == t % 5 else g * np.float32(np.inf) for i, g in enumerate(gradients(t))])
        second.apply(grads)
    assert second.skipped == 8
    assert_all_same_bits(whole, skipping)
    assert first._state.numbers["missed"].tolist() == second._state.numbers["missed"].tolist()


@one_of_each
def test_a_step_that_fails_is_counted_nowhere(name: str, options: dict[str, Any]) -> None:
    whole, failing = variables(), variables()
    first, second = make(name, whole, **options), make(name, failing, **options)
    for t in range(8):
        grads = [g if PRESENT["alternating"](t, i) else None for i, g in enumerate(gradients(t))]
        first.apply(grads)
        with pytest.raises(ValueError, match="no variable has a gradient"):
            second.apply([None] * 5)
        failing[3].constraint = refusing
        with pytest.raises(ArithmeticError):
            second.apply([None, *gradients(t)[1:]])
        failing[3].constraint = None
        second.apply(grads)
    assert_all_same_bits([*whole, *state(first)], [*failing, *state(second)])


def refusing(array: Any) -> Any:
    raise ArithmeticError("no projection today")


# Kept.


def train(optimizer: fv.torch.TorchOptimizer, steps: range) -> None:
    for t in steps:
        optimizer.param_groups[0]["lr"] = 0.25 / (t + 1)
        optimizer.apply([g if PRESENT["alternating"](t, i) else None for i, g in enumerate(gradients(t))])


@few_cases
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "file", "file, unbuilt"])
def test_a_copy_continues_bit_for_bit(name: str, options: dict[str, Any], how: str, tmp_path: Path) -> None:
    given = variables()
    optimizer = make(name, [{"params": given[:2]}, {"params": given[2:], "lr": 0.0625}], **options)
    train(optimizer, range(5))
    if how == "pickle":
        ours, twin = pickle.loads(pickle.dumps((given, optimizer)))
    elif how == "deepcopy":
        ours, twin = copy.deepcopy((given, optimizer))
    else:
        ours = variables()
        built = [{"params": ours[1::-1]}, {"params": ours[:1:-1], "lr": 0.0625}]  # in another order
        twin = make(name, None if "unbuilt" in how else built, **options)
        path = fv.Checkpoint(variables=given, optimizer=optimizer).save(tmp_path / "a.h5")
        twin.lr = optimizer.lr
        fv.Checkpoint(variables=ours, optimizer=twin).restore(path)
    for t in range(5, 9):
        for each, of in ((optimizer, given), (twin, ours)):
            each.param_groups[0]["lr"] = 0.25 / (t + 1)
            present = [(g, v) for i, (g, v) in enumerate(zip(gradients(t), of, strict=True)) if (t + i) % 3]
            each.apply_gradients(present)
    assert_all_same_bits(given, ours)
    for slot in optimizer.slots:
        assert_all_same_bits(*([of.slot(v, slot) for v in vs] for of, vs in ((optimizer, given), (twin, ours))))


@one_of_each
def test_older_files_are_read(name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """As they were saved before: a number of each group where now each variable has one, and no counts."""
    given, ours = variables(), variables()
    optimizer = make(name, [{"params": given[:2]}, {"params": given[2:], "lr": 0.0625}], **options)
    for t in range(5):
        optimizer.apply(gradients(t))
    numbers = optimizer._state.numbers
    older = {"skipped": numbers["skipped"]}
    for key in optimizer.initial_numbers_per_variable():
        what, space, suffix = key.partition(" ")
        older |= {f"{what} {group}{space}{suffix}": numbers[key][2 * group] for group in (0, 1)}
    with monkeypatch.context() as patched:
        patched.setattr(optimizer._state, "numbers", older)
        path = fv.Checkpoint(variables=given, optimizer=optimizer).save(tmp_path / "a.h5")
    twin = make(name, **options)
    fv.Checkpoint(variables=ours, optimizer=twin).restore(path)
    train(optimizer, range(5, 9))
    train(twin, range(5, 9))
    assert contents(twin, ours) == contents(optimizer, given)


@pytest.mark.parametrize("missed", [[0.5], [-1.0], [4.0], [float("nan")], [0.0, 0.0], 0.0])
def test_counts_that_cannot_be_are_refused(missed: Any, tmp_path: Path, monkeypatch: Any) -> None:
    w = fv.Variable([1.0], name="w")
    optimizer = fv.torch.Adam([w])
    for _ in range(3):
        optimizer.apply([[1.0]])
    with monkeypatch.context() as patched:
        patched.setitem(optimizer._state.numbers, "missed", np.array(missed))
        path = fv.Checkpoint(w=w, optimizer=optimizer).save(tmp_path / "a.h5")
    before = contents(optimizer, [w])
    with pytest.raises(ValueError, match="missed"):
        fv.Checkpoint(w=w, optimizer=optimizer).restore(path)
    assert contents(optimizer, [w]) == before


@pytest.mark.parametrize("options", [{}, {"nonfinite": "skip"}, {"use_ema": True}], ids=str)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_is_counted_wholly_or_not_at_all(options: dict[str, Any], steps: int) -> None:
    """Interrupt steps in which other variables have gradients than before."""

    def scene() -> Any:
        given = variables()
        optimizer = fv.torch.Adam(given, **options)
        for t in range(steps):
            optimizer.apply([g if PRESENT["alternating"](t, i) else None for i, g in enumerate(gradients(t))])
        grads = [g if PRESENT["alternating"](steps, i) else None for i, g in enumerate(gradients(steps))]

        def does() -> None:
            optimizer.apply(grads)

        return does, lambda: contents(optimizer, given)

    check_at_instants(scene)


def test_an_interrupted_step_can_be_made_again() -> None:
    """Where cohorts were half made, the next step makes them anew."""
    whole, failing = variables(), variables()
    first, second = fv.torch.NAdam(whole), fv.torch.NAdam(failing)
    for t in range(8):
        grads = [g if PRESENT["one at a time"](t // 2, i) or t > 5 else None for i, g in enumerate(gradients(t))]
        first.apply(grads)
        plan = second._refreshed()
        part, plan.cohorts.part = plan.cohorts.part, interrupted  # type: ignore[method-assign]
        try:
            second.apply(grads)
        except KeyboardInterrupt:
            plan.cohorts.part = part  # type: ignore[method-assign]
            second.apply(grads)
        plan.cohorts.part = part  # type: ignore[method-assign]
    assert_all_same_bits([*whole, *state(first)], [*failing, *state(second)])


def interrupted(present: list[bool]) -> Any:
    raise KeyboardInterrupt


# Native classes, and plans.


def test_native_classes_keep_one_count() -> None:
    v, w = fv.Variable([1.0]), fv.Variable([1.0])
    optimizer = fv.optimizers.Adam(0.5)
    optimizer.apply([[1.0], None], [v, w])
    optimizer.apply([[1.0], [1.0]])
    assert "missed" not in optimizer._state.numbers
    assert w.value == pytest.approx(1 - 0.5 * 0.1 / (1 - 0.9**2) / (np.sqrt(0.001 / (1 - 0.999**2))), rel=1e-4)


def test_compiled_plans_share_scalars_as_the_reference_does() -> None:
    rows = [(0.5,), (0.25,), (2.0,)]
    results = []
    for plan_class, rules in ((reference.Plan, reference.RULES), (kernels.Plan, kernels.RULES)):
        weights = [np.arange(4.0), np.ones(3), np.ones(2, np.float32), np.ones(5)]
        plan = plan_class("o", rules["gradient_descent"], "abcd", weights, [()] * 4, [0] * 4)
        plan.share_scalars([2, 0, 1, -1])
        plan.bind([np.ones(4), np.ones(3), np.ones(2), None])
        plan.run(rows)
        plan.share_scalars([0, 0, 0, 0])
        plan.bind([np.ones(4), None, None, np.ones(5)])
        plan.run(rows[:1])
        results.append(weights)
    assert_all_same_bits(*results)
    assert [w[0] for w in results[1]] == [-2.5, 0.5, 0.75, 0.5]


@pytest.mark.parametrize("plan_class", [reference.Plan, kernels.Plan])
def test_cohorts_are_checked(plan_class: Any) -> None:
    rules = reference.RULES if plan_class is reference.Plan else kernels.RULES
    weights, given = [np.ones(2), np.ones(2)], [rules["gradient_descent"], rules["momentum"]]
    plan = plan_class("o", given, "ab", weights, [[], [np.ones(2)]], [0, 1])
    for cohorts, message in (([0], "cohorts of 2 variables"), ([0, 0], "one rule"), ([1, 2], "numbered from 0")):
        with pytest.raises(ValueError, match=f"o: .*{message}"):
            plan.share_scalars(cohorts)
    plan.bind([np.ones(2), None])
    plan.run([(1.0,), (0.0,) * 4])
    assert (weights[0] == 0).all()
