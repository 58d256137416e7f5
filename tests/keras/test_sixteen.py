"""Variables of 16 bits, beside those of `fastvar.optimizers` and of float32, on the backend of this process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import fastvar as fv
import fastvar.keras.optimizers as ours
from fastvar.formats import OF_MASTERS
from tests.support.keras_sixteen import (
    EMA,
    OPTIONS,
    SHAPES,
    bits,
    built,
    copies,
    every_choice,
    every_class,
    every_dtype,
    exact,
    gradients,
    numbers,
    slots,
    step,
    values,
    variables,
)
from tests.support.keras_steps import BACKEND, apply, as_array, everything, make, move, trained_matrix

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Gradients do not exist"),
]


# Beside Variables of 16 bits, and float32.


@pytest.mark.parametrize("option", OPTIONS)
@every_choice
@every_class
def test_bits_are_those_of_fastvar(name: str, dtype: str, master: bool, option: str) -> None:
    options = {"master": master, **OPTIONS[option]}
    of = variables(dtype)
    mine = built(name, of, **options)
    places = [fv.Variable(as_array(v), name=v.path) for v in of]
    other = make(fv.optimizers, name, **options)
    other.build(places)
    for t in range(4):
        apply(mine, gradients(t, dtype), of)
        other.apply([as_array(keras.Variable(g, dtype=dtype)) for g in gradients(t, dtype)], places)
        assert bits(of) == [w.value.tobytes() for w in places], t
        if master:
            assert numbers(mine, of) == [np.asarray(w.master).tobytes() for w in places], t
    assert (mine.kernel_steps, mine.keras_steps) == (4, 0)
    assert {v.dtype for v in of} == {dtype}
    kept = {OF_MASTERS[dtype].name} if master else set()
    assert {rest.dtype for rest in mine._masters if rest is not None} == kept


@pytest.mark.parametrize("option", OPTIONS)
@every_dtype
@every_class
def test_with_a_master_steps_are_those_of_float32(name: str, dtype: str, option: str) -> None:
    """Slots, averages and sums too, bit for bit."""
    of = variables(dtype)
    its = copies(of)
    mine, other = (built(name, each, **OPTIONS[option], master=True) for each in (of, its))
    step(mine, of, range(4), dtype)
    step(other, its, range(4), dtype)
    assert numbers(mine, of) == bits(its)
    if name != "Nadam":  # Keras makes one of its numbers in the dtype of the first variable
        assert slots(mine) == slots(other)
    assert [v.dtype for v in other.variables if "master" in v.path] == []


@every_class
def test_keras_in_float32_rounded_is_near(name: str) -> None:
    of = variables("bfloat16")
    its = copies(of)
    mine, theirs = built(name, of, master=True), make(keras.optimizers, name)
    step(mine, of, range(6))
    step(theirs, its, range(6))
    if BACKEND == "torch" and name == "ScheduleFreeAdamW":
        pytest.skip("Keras's reads the new momentum as the old one there")
    for v, w in zip(of, its, strict=True):
        np.testing.assert_allclose(as_array(v).astype("f4"), as_array(w), rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("master", [None, False, True])
def test_small_steps_are_lost_only_in_keras(master: bool | None) -> None:
    v = keras.Variable(np.ones(4096), dtype="bfloat16")
    optimizer = ours.SGD(2.0**-10, master=master)
    for _ in range(32):
        optimizer.apply([keras.ops.ones(4096)], [v])
    mean = float(as_array(v).astype("f4").mean())
    expected = 1 if master is None else 1 - 2.0**-5
    assert abs(mean - expected) < 5e-4  # ten standard deviations of rounding at random
    assert optimizer.kernel_steps == (0 if master is None else 32)


def test_without_a_master_seeds_decide() -> None:
    ends = []
    for seed in (0, 0, 1):
        of = variables("bfloat16")
        step(built("Adam", of, master=False, seed=seed), of, range(3))
        ends.append(bits(of))
    assert ends[0] == ends[1] != ends[2]


@every_dtype
def test_without_the_keyword_steps_are_keras_s(dtype: str) -> None:
    of, its = variables(dtype), variables(dtype)
    mine, theirs = built("SGD", of, momentum=0.5), make(keras.optimizers, "SGD", momentum=0.5)
    step(mine, of, range(3), dtype)
    step(theirs, its, range(3), dtype)
    assert everything(mine, of) == everything(theirs, its)
    assert (mine.kernel_steps, mine.keras_steps) == (0, 3)
    assert mine.keras_reason == f"{of[0].path} must be float32 or float64, or master True or False, got {dtype}"


def test_variables_of_several_dtypes() -> None:
    of = [keras.Variable(v, dtype=d) for v, d in zip(values(5), ("bfloat16", "float32", "float16"), strict=True)]
    its = copies(of)
    mine, other = built("Lamb", of, master=True), built("Lamb", its)
    step(mine, of, range(3))
    step(other, its, range(3))
    assert [None if rest is None else rest.dtype for rest in mine._masters] == ["int16", None, "float32"]
    assert as_array(of[1]).tobytes() == as_array(its[1]).tobytes()
    assert [v.dtype for v in mine.variables[2:]] == ["float32"] * 6 + ["int16", "float32"]


# Constraints, averages, and other writes.


class Limited(keras.constraints.Constraint):
    def __call__(self, w: Any) -> Any:
        return keras.ops.clip(w, -0.7001, 0.7001)


@pytest.mark.parametrize("constraint", [keras.constraints.NonNeg(), keras.constraints.MaxNorm(1.5), Limited()])
@every_dtype
def test_constraints_project_numbers_of_float32(dtype: str, constraint: Any) -> None:
    of = variables(dtype, constraint)
    its = copies(of)
    mine, other = built("Adam", of, master=True), built("Adam", its)
    step(mine, of, range(4))
    step(other, its, range(4))
    assert numbers(mine, of) == bits(its)
    of = variables("bfloat16", constraint)
    optimizer = built("Adam", of, master=False)
    step(optimizer, of, range(4))
    assert optimizer.kernel_steps == 4


def test_constraints_of_other_variables_are_keras_s() -> None:
    of = [keras.Variable(v, dtype=d) for v, d in zip(values(5), ("bfloat16", "float32", "bfloat16"), strict=True)]
    of[0].constraint = of[1].constraint = keras.constraints.NonNeg()
    step(built("SGD", of, master=True), of, range(2))
    assert [bool((as_array(v) < 0).any()) for v in of] == [False, False, True]


@every_dtype
def test_final_averages_are_written_into_masters(dtype: str) -> None:
    of = variables(dtype)
    its = copies(of)
    mine, other = built("Adam", of, master=True, **EMA), built("Adam", its, **EMA)
    for optimizer, each in ((mine, of), (other, its)):
        step(optimizer, each, range(3))
        optimizer.finalize_variable_values(each)
        step(optimizer, each, range(3, 5))
    assert numbers(mine, of) == bits(its)


@every_choice
def test_averages_in_evaluations_are_rounded_and_masters_stay(dtype: str, master: bool) -> None:
    """SwapEMAWeights exchanges weights and averages, and back. Steps go on as without it."""
    of, its = variables(dtype), variables(dtype)
    mine, other = (built("Adam", each, master=master, **EMA) for each in (of, its))
    for optimizer, each in ((mine, of), (other, its)):
        step(optimizer, each, range(3), dtype)
    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(SimpleNamespace(optimizer=mine))
    averages = mine._model_variables_moving_average
    before = [as_array(average) for average in averages]
    callback.on_test_begin()
    rounded = [as_array(v) for v in of]
    assert bits(of) == [average.astype(v.dtype).tobytes() for v, average in zip(rounded, before, strict=True)]
    callback.on_test_end()
    assert bits(averages) == [v.astype("f4").tobytes() for v in rounded]
    for steps in (range(0), range(3, 5)):
        step(mine, of, steps, dtype)
        step(other, its, steps, dtype)
        assert bits(of) == bits(its)
        assert not master or numbers(mine, of) == numbers(other, its)
    for k, average in enumerate(other._model_variables_moving_average):
        off = np.abs(rounded[k].astype("f4") - before[k]).max() * EMA["ema_momentum"] ** 2
        assert off > 0
        np.testing.assert_allclose(as_array(averages[k]), as_array(average), rtol=1e-6, atol=off)


@every_dtype
def test_what_is_assigned_counts(dtype: str) -> None:
    """To within half the distance to the next number in bfloat16."""
    of = variables(dtype)
    mine = built("SGD", of, master=True)
    step(mine, of, range(2))
    of[0].assign(keras.ops.ones(SHAPES["embedding"]))
    step(mine, of, range(2, 3))
    first = of[0]
    expected = 1 - 0.0625 * values(102)[0]
    np.testing.assert_allclose(as_array(first).astype("f4"), expected, rtol=2**-7, atol=2**-8)


# Files and conversion.


def model_with(optimizer: Any, dtype: str) -> Any:
    keras.utils.set_random_seed(0)
    policy = keras.DTypePolicy(dtype)
    layers = [keras.layers.Dense(80, dtype=policy), keras.layers.Dense(2, dtype=policy)]
    model = keras.Sequential([keras.layers.Input((64,)), *layers])
    model.compile(optimizer=optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    return model


@pytest.mark.skipif(BACKEND != "torch", reason="Keras has no fit on NumPy")
@every_choice
def test_fit_and_what_follows_from_a_file(dtype: str, master: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((32, width)).astype("float32") for width in (64, 2))
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model = model_with(make(ours, "Adam", learning_rate=0.01, master=master, **EMA), dtype)
    losses = model.fit(x, y, epochs=3, **options).history["loss"]
    assert losses[-1] < losses[0]
    if master:
        averages = [as_array(v).tobytes() for v in model.optimizer._model_variables_moving_average]
        assert numbers(model.optimizer, model.trainable_variables) == averages
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(x, y, epochs=2, **options)
    of = [everything(each.optimizer, each.trainable_variables) for each in (model, again)]
    assert of[0] == of[1]
    assert (again.optimizer.kernel_steps, again.optimizer.keras_steps) == (8, 0)


@pytest.mark.skipif(BACKEND != "torch", reason="Keras has no fit on NumPy")
@every_dtype
def test_fit_that_evaluates_averages_ends_with_them_rounded(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((32, width)).astype("float32") for width in (64, 2))
    ends, losses = [], []
    for callbacks in ([], [{}], [{"swap_on_epoch": True}]):
        model = model_with(make(ours, "Adam", learning_rate=0.01, master=True, **EMA), dtype)
        used = [keras.callbacks.SwapEMAWeights(**options) for options in callbacks]
        options = {"batch_size": 8, "shuffle": False, "verbose": 0, "validation_data": (x, y)}
        losses.append(model.fit(x, y, epochs=3, callbacks=used, **options).history["loss"])
        ends.append(exact(model.optimizer, model.trainable_variables))
    assert losses[0] == losses[1] == losses[2]
    for plain, *others in zip(*ends, strict=True):
        for end in others:
            assert np.array_equal(end, end.astype(dtype).astype("f4"))  # 16 bits have it all
            assert not np.array_equal(end, plain)
            np.testing.assert_allclose(end, plain, rtol=0, atol=2.0**-8 * np.abs(plain).max())


def train(model: Any, steps: range) -> None:
    for t in steps:
        rng, of = np.random.default_rng(t), model.trainable_variables
        grads = [keras.ops.convert_to_tensor(rng.standard_normal(v.shape).astype("float32")) for v in of]
        apply(model.optimizer, grads, of)


@pytest.mark.parametrize("slot_dtype", [None, "bfloat16", "8bit"])
@every_choice
@pytest.mark.parametrize("name", ["Adam", "Adafactor", "Nadam"])
def test_files_continue_bit_for_bit(
    name: str, dtype: str, master: bool, slot_dtype: str | None, tmp_path: Path
) -> None:
    model = model_with(make(ours, name, master=master, slot_dtype=slot_dtype, seed=3, **EMA), dtype)
    train(model, range(3))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert again.optimizer.master is master
    for steps in (range(0), range(3, 6)):
        train(model, steps)
        train(again, steps)
        of = [everything(each.optimizer, each.trainable_variables) for each in (model, again)]
        assert of[0] == of[1]
    assert again.optimizer.kernel_steps == 3


@pytest.mark.parametrize(
    ("dtype", "there", "master"),
    [
        ("float16", "float16", None),
        ("bfloat16", "bfloat16", False),
        ("bfloat16", "float16", True),
        ("float16", "bfloat16", True),
    ],
)
def test_states_with_other_masters_are_refused(dtype: str, there: str, master: bool | None) -> None:
    of, its = variables(dtype), variables(there)
    mine, other = built("Adam", of, master=True), built("Adam", its, master=master)
    step(other, its, range(1), there)
    before = everything(mine, of)
    weights = [v.numpy() for v in other.variables]
    for load, given in (
        ("load_own_variables", {str(i): w for i, w in enumerate(weights)}),
        ("set_weights", weights),
    ):
        with pytest.raises(ValueError, match=r"^Adam: the saved state has other formats than .* master of that"):
            getattr(mine, load)(given)
    assert everything(mine, of) == before


@every_choice
def test_conversion(dtype: str, master: bool) -> None:
    of = variables(dtype)
    mine = built("Adam", of, master=master, slot_dtype="8bit")
    step(mine, of, range(3))
    theirs = ours.to_keras(mine)
    assert {v.dtype for v in theirs.variables[2:]} == {dtype}
    back = ours.from_keras(theirs, master=master)
    assert {v.dtype for v in back.variables[2:8]} == {"float32"}
    assert len(back.variables) == 8 + 3 * master
    step(theirs, of, range(3, 4), dtype)
    step(back, of, range(4, 5), dtype)
    assert (back.kernel_steps, back.keras_steps) == (1, 0)


@every_dtype
def test_loss_scale_optimizers_have_masters_inside(dtype: str) -> None:
    of = variables(dtype)
    its = copies(of)
    for each in (of, its):
        inner = ours.Adam(0.0625, master=True)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
        optimizer.build(each)
        for t in range(3):
            optimizer.apply([keras.ops.multiply(g, 4.0) for g in gradients(t, dtype)], each)
        assert inner.kernel_steps == 3
        if each is of:
            kept = numbers(inner, of)
            assert len(ours.to_keras(optimizer).variables) == len(optimizer.variables) - 3
    assert kept == bits(its)


# Errors.


def test_float16_needs_a_master() -> None:
    of = variables("float16")
    optimizer = ours.Adam(master=False)
    count = len(optimizer.variables)
    with pytest.raises(ValueError, match=r"^Adam: \S*embedding\S* is float16, which needs master=True"):
        optimizer.build(of)
    assert (optimizer.built, len(optimizer.variables)) == (False, count)


def test_master_is_checked_and_set_before_the_build() -> None:
    with pytest.raises(TypeError, match=r"^Adam: master must be True or False or None, got 'yes'"):
        ours.Adam(master="yes")
    optimizer = ours.Adam()
    optimizer.master = True
    of = variables("bfloat16")
    optimizer.build(of)
    with pytest.raises(ValueError, match=r"^Adam: master must be set before the optimizer is built"):
        optimizer.master = False
    step(optimizer, of, range(1))
    assert optimizer.kernel_steps == 1


def test_steps_that_only_keras_has_are_refused() -> None:
    class Mine(ours.SGD):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            raise AssertionError

    of = variables("bfloat16")
    optimizer = Mine(master=True)
    optimizer.build(of)
    before = everything(optimizer, of)
    with pytest.raises(ValueError, match=r"^Mine: weights in 16 bits need fastvar's .*_step; use master=None"):
        step(optimizer, of, range(1))
    assert everything(optimizer, of) == before
    with pytest.raises(ValueError, match=r"^Ftrl: weights in 16 bits need .* not compiled"):
        ours.Ftrl(learning_rate_power=-0.75, master=False).build(of)


# Memory.


@every_choice
def test_variables_that_are_moved_are_followed(dtype: str, master: bool) -> None:
    ends = []
    for moved in (False, True):
        of = variables(dtype)
        optimizer = built("Adam", of, master=master)
        step(optimizer, of, range(2))
        move([*of, *optimizer.variables[2:]] if moved else [])
        step(optimizer, of, range(2, 4))
        ends.append(everything(optimizer, of))
    assert ends[0] == ends[1]


@pytest.mark.skipif(BACKEND != "torch", reason="of the torch backend")
@every_dtype
def test_transposed_variables(dtype: str) -> None:
    ends = []
    for transposed in (False, True):
        optimizer = ours.Adam(master=True)
        v = trained_matrix(optimizer, dtype, transposed)
        ends.append(everything(optimizer, [v]))
    assert ends[0] == ends[1]


@pytest.mark.skipif(BACKEND != "torch", reason="of the torch backend")
def test_tensors_that_become_bfloat16_later_are_refused() -> None:
    of = variables("float32")
    optimizer = built("Adam", of, master=True)
    step(optimizer, of, range(1))
    for v in of:
        v._value.data = v._value.data.bfloat16()
    step(optimizer, of, range(1, 2))
    assert optimizer.keras_reason == f"Keras keeps no master of {of[0].path}, which is bfloat16"
