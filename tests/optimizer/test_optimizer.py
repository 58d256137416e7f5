"""Optimizers beyond arithmetic: groups, freezing, configuration, schedules, copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import Case, assert_same_bits, contents
from tests.support.runs import (
    COMBINATIONS,
    assert_all_same_bits,
    every_case,
    gradients,
    slots_of,
    train,
    variables,
)

# Groups.


def test_group_has_its_own_hyperparameters() -> None:
    grouped, alone = variables(), variables()
    optimizer = fv.optimizers.Adam(0.5, weight_decay=0.25)
    optimizer.build([*grouped[:2], {"variables": grouped[2:], "learning_rate": 0.125, "beta_1": 0.5}])
    train(optimizer, grouped)
    first, second = (
        fv.optimizers.Adam(0.5, weight_decay=0.25),
        fv.optimizers.Adam(0.125, 0.5, weight_decay=0.25),
    )
    for t in range(5):
        first.apply(gradients(t)[:2], alone[:2])
        second.apply(gradients(t)[2:], alone[2:])
    assert_all_same_bits(grouped, alone)


def test_group_hyperparameters_are_settable_also_to_a_schedule() -> None:
    grouped, alone = variables(), variables()
    optimizer = fv.optimizers.SGD(0.5)
    optimizer.build([{"variables": grouped[:2]}, {"variables": grouped[2:], "learning_rate": 0.25}])
    train(optimizer, grouped, 2)
    optimizer.groups[1].learning_rate = lambda step: 1.0 / (1 + step)
    optimizer.groups[0].learning_rate = 0.125
    assert [group.learning_rate for group in optimizer.groups] == [0.125, 1 / 3]
    train(optimizer, grouped, 2, start=2)
    rates = [(0.5, 0.25), (0.5, 0.25), (0.125, 1 / 3), (0.125, 1 / 4)]
    for t, (first, second) in enumerate(rates):
        fv.optimizers.SGD(first).apply(gradients(t)[:2], alone[:2])
        fv.optimizers.SGD(second).apply(gradients(t)[2:], alone[2:])
    assert_all_same_bits(grouped, alone)


def test_group_follows_what_it_does_not_set() -> None:
    optimizer = fv.optimizers.SGD(0.5)
    optimizer.build([{"variables": variables()}])
    optimizer.learning_rate = 0.25
    assert optimizer.groups[0].learning_rate == 0.25


def test_group_momentum_alone_makes_slots() -> None:
    grouped, alone = variables(), variables()
    optimizer = fv.optimizers.SGD(0.5)
    optimizer.build([*grouped[:2], {"variables": grouped[2:], "momentum": 0.9}])
    train(optimizer, grouped)
    plain, heavy = fv.optimizers.SGD(0.5), fv.optimizers.SGD(0.5, momentum=0.9)
    for t in range(5):
        plain.apply(gradients(t)[:2], alone[:2])
        heavy.apply(gradients(t)[2:], alone[2:])
    for a, e in zip(grouped, alone, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("name", ["lr", "clipnorm", "use_ema", "variables_", "nesterov"])
def test_group_refuses_what_cannot_vary(name: str) -> None:
    optimizer = fv.optimizers.SGD(0.5)
    with pytest.raises(AttributeError, match=f"a group has no '{name}'.*learning_rate"):
        optimizer.build([{"variables": variables(), name: 1}])
    assert optimizer.variables == [] == optimizer.groups


def test_a_module_can_be_built_on() -> None:
    model = fv.Module()
    model.a, model.b = fv.Variable([1.0]), fv.Variable([2.0])
    optimizer = fv.optimizers.SGD(0.5)
    optimizer.build(model)
    optimizer.apply([[1.0], [1.0]])
    assert [float(v[0]) for v in model.variables] == [0.5, 1.5]


# Freezing.


@every_case
@pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_frozen_variable_keeps_its_value_at_every_step(case: Case, options: dict[str, Any]) -> None:
    given = variables(constraint=fv.constraints.NonNeg())
    optimizer = case.make(**options)
    train(optimizer, given, 4)
    given[0].trainable = False
    before, slots = given[0].numpy(), slots_of(optimizer, given[0])
    train(optimizer, given, 5, start=4)
    assert_same_bits(given[0].numpy(), before)
    assert_all_same_bits(slots_of(optimizer, given[0]), slots)
    given[0].trainable = True
    train(optimizer, given, 3, start=9)
    assert (given[0].value != before).any()


def test_all_frozen_is_a_step_that_changes_nothing() -> None:
    given = variables(trainable=False)
    before = [v.numpy() for v in given]
    optimizer = fv.optimizers.Adam()
    assert_all_same_bits(train(optimizer, given), before)
    assert optimizer.iterations == 5


# Configuration.


@every_case
def test_config_round_trip(case: Case) -> None:
    schedule = fv.schedules.CosineDecay(0.5, 7, warmup_target=0.75, warmup_steps=2)
    optimizer = case.make(learning_rate=schedule, clipnorm=0.5, use_ema=True, name="mine", weight_decay=0.125)
    twin = type(optimizer).from_config(pickle.loads(pickle.dumps(optimizer.get_config())))
    assert twin.get_config() == optimizer.get_config()
    assert_all_same_bits(train(twin, variables()), train(optimizer, variables()))


@every_case
def test_repr_can_be_evaluated(case: Case) -> None:
    optimizer = case.make(learning_rate=fv.schedules.CosineDecay(0.5, 7), clipvalue=0.5)
    names = {**vars(fv.optimizers), **vars(fv.schedules)}
    assert eval(repr(optimizer), names).get_config() == optimizer.get_config()


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("lr", "learning_rate"),
        ("eps", "epsilon"),
        ("beta1", "beta_1"),
        ("weight_decy", "weight_decay"),
        ("max_grad_norm", "global_clipnorm"),
    ],
)
def test_unknown_argument_is_hinted_at(argument: str, hint: str) -> None:
    with pytest.raises(TypeError, match=f"Adam: unknown argument '{argument}', did you mean '{hint}'"):
        fv.optimizers.Adam(**{argument: 1})


@every_case
def test_learning_rate_is_settable_between_steps(case: Case) -> None:
    stepped, scheduled = variables(), variables()
    optimizer = case.make(learning_rate=0.5)
    for t, rate in enumerate([0.5, 0.25, 0.125]):
        optimizer.learning_rate = rate
        train(optimizer, stepped, 1, start=t)
    train(case.make(learning_rate=lambda step: [0.5, 0.25, 0.125][step]), scheduled, 3)
    assert_all_same_bits(stepped, scheduled)


def test_learning_rate_reads_as_the_schedule_now() -> None:
    optimizer = fv.optimizers.SGD(lambda step: 0.5**step)
    assert optimizer.learning_rate == 1
    train(optimizer, variables(), 3)
    assert optimizer.learning_rate == 0.125


def test_moving_average_started_later_begins_at_the_weights() -> None:
    given = variables()
    optimizer = fv.optimizers.SGD(0.125)
    train(optimizer, given, 2)
    before = [v.numpy() for v in given]
    optimizer.use_ema, optimizer.ema_momentum = True, 0.75
    train(optimizer, given, 1, start=2)
    for v, old in zip(given, before, strict=True):
        np.testing.assert_allclose(optimizer.slot(v, "average"), 0.75 * old + 0.25 * v.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("thing", [fv.regularizers.L2(0.25), fv.constraints.MaxNorm(5.0)], ids=["L2", "MaxNorm"])
def test_penalties_and_projections_are_fixed_but_can_be_replaced(thing: Any) -> None:
    name = next(iter(thing.get_config()))
    with pytest.raises(AttributeError, match=f"{name} is fixed; assign a new"):
        setattr(thing, name, 0.5)
    v, plain = fv.Variable(np.full(4, 8.0)), fv.Variable(np.full(4, 8.0))
    optimizer = fv.optimizers.SGD(0.125)
    optimizer.apply([np.zeros(4)] * 2, [v, plain])
    setattr(v, "regularizer" if isinstance(thing, fv.regularizers.L2) else "constraint", thing)
    optimizer.apply([np.zeros(4)] * 2)
    assert (v < plain).all()


def test_constraint_that_does_not_fit_changes_nothing() -> None:
    given, optimizer = variables()[:2], fv.optimizers.SGD(0.125)
    optimizer.apply(gradients()[:2], given)
    given[1].constraint = fv.constraints.MaxNorm(1.0, axis=3)
    before = contents(optimizer, given)
    with pytest.raises(ValueError, match="axis"):
        optimizer.apply(gradients(1)[:2], given)
    assert contents(optimizer, given) == before


def test_a_slot_may_be_assigned_as_well_as_written() -> None:
    class Assigns(fv.Optimizer):
        slots = ("total",)

        def update(self, variable: Any, gradient: Any, slots: Any, hyper: Any) -> None:
            slots.total = slots.total + gradient
            variable -= slots.total

    w, optimizer = fv.Variable([8.0]), Assigns()
    for _ in range(3):
        optimizer.apply([[1.0]], [w])
    assert (w[0], optimizer.slot(w, "total")[0]) == (2.0, 3.0)


# Copies.


@every_case
@pytest.mark.parametrize("options", COMBINATIONS, ids=range(len(COMBINATIONS)))
@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copy_continues_bit_for_bit_and_apart(case: Case, options: dict[str, Any], how: str) -> None:
    given = variables(regularizer=fv.regularizers.L2(0.25))
    optimizer = case.make(**options)
    optimizer.exclude_from_weight_decay([given[0]], ["v1"])
    optimizer.build([*given[:2], {"variables": given[2:], "learning_rate": 0.25}])
    train(optimizer, given, 4)
    pair = (given, optimizer)
    ours, twin = pickle.loads(pickle.dumps(pair)) if how == "pickle" else copy.deepcopy(pair)
    before = contents(optimizer, given)
    train(twin, ours, 4, start=4)
    assert contents(optimizer, given) == before
    train(optimizer, given, 4, start=4)
    assert contents(twin, ours) == contents(optimizer, given)


def test_exclusions_before_build_survive_a_copy() -> None:
    given, optimizer = variables(), fv.optimizers.SGD(0.5, weight_decay=0.25)
    optimizer.exclude_from_weight_decay(given[:2])
    ours, twin = copy.deepcopy((given, optimizer))
    assert_all_same_bits(train(twin, ours), train(optimizer, given))


# Mistakes of new users.


def test_finalizing_before_the_first_step_keeps_the_weights() -> None:
    w, optimizer = fv.Variable([1.0, 2.0]), fv.optimizers.SGD(use_ema=True)
    optimizer.build([w])
    optimizer.finalize_variable_values()
    np.testing.assert_array_equal(w, [1, 2])


def test_a_copied_module_is_excluded_by_name_like_the_original() -> None:
    net = fv.Module()
    net.bias = fv.Variable([1.0, 2.0])
    optimizer = fv.optimizers.SGD(0.5, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(net)
    twin, its = copy.deepcopy((net, optimizer))
    for n, o in ((net, optimizer), (twin, its)):
        o.apply([[1.0, 1.0]], n.variables)
    assert_same_bits(twin.bias.numpy(), net.bias.numpy())
    with pytest.raises(TypeError, match="list of strings"):
        optimizer.exclude_from_weight_decay(var_names="bias")


def test_a_module_may_hold_frozen_counters() -> None:
    net = fv.Module()
    net.w, net.steps = fv.Variable([1.0]), fv.Variable(0, trainable=False)
    optimizer = fv.optimizers.SGD()
    optimizer.build(net)
    assert optimizer._state.variables == [net.w]


def test_names_of_other_libraries_are_pointed_out_when_set() -> None:
    with pytest.raises(AttributeError, match="learning_rate"):
        fv.optimizers.Adam().lr = 0.1


def test_accumulation_is_fixed_once_training_has_begun() -> None:
    optimizer = fv.optimizers.SGD()
    optimizer.gradient_accumulation_steps = 2
    train(optimizer, variables(), 2)
    with pytest.raises(ValueError, match="fixed once training has begun"):
        optimizer.gradient_accumulation_steps = 4


def test_a_subclass_with_its_own_init_is_told_what_to_do() -> None:
    with pytest.raises(TypeError, match="declare parameters in the class body instead"):

        class Mine(fv.Optimizer):
            def __init__(self, rate: float) -> None: ...


def test_a_users_class_does_not_take_the_place_of_ours() -> None:
    class CosineDecay(fv.schedules.LearningRateSchedule):
        def __call__(self, step: int) -> float:
            return 0.5

    ours = fv.optimizers.SGD(fv.schedules.CosineDecay(0.25, 10))
    again = fv.optimizers.SGD.from_config(ours.get_config())
    assert again.learning_rate == 0.25
    assert fv.optimizers.SGD.from_config(fv.optimizers.SGD(CosineDecay()).get_config()).learning_rate == 0.5


def test_zeroing_reaches_frozen_variables() -> None:
    given = variables()
    given[0].trainable = False
    optimizer = fv.optimizers.SGD()
    optimizer.build(given)
    for v, g in zip(given, gradients(), strict=True):
        v.grad = g
    optimizer.step(zero_grad=True)
    assert not any(v.grad.any() for v in given)
