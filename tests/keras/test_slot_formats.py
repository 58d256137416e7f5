"""Slots in 16 and 8 bits, beside those of `fastvar.optimizers`, on the backend of this process."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import fastvar as fv
import fastvar.keras.optimizers as ours
from tests.support.keras_steps import BACKEND, NAMES, apply, as_array, everything, make, move, trained_matrix

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Gradients do not exist"),
]
FORMATS = ["bfloat16", "8bit"]
SHAPES = {"embedding": (70, 64), "long": (5000,), "bias": (70,)}
CODES = {"bfloat16": ["kernel_momentum"], "8bit": ["kernel_momentum_codes", "kernel_momentum_scales"]}
EMA = {"use_ema": True, "ema_momentum": 0.75}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"slot_dtype_min_size": 0},
    "many": {"weight_decay": 0.25, "global_clipnorm": 1.5, **EMA},
    "accumulation": {"gradient_accumulation_steps": 2, "clipnorm": 0.5},
}
every_class = pytest.mark.parametrize("name", NAMES)
every_format = pytest.mark.parametrize("slot_dtype", FORMATS)


def values(seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()]


def variables() -> list[Any]:
    return [keras.Variable(value, name=name) for name, value in zip(SHAPES, values(5), strict=True)]


def gradients(t: int) -> list[Any]:
    return [*map(keras.ops.convert_to_tensor, values(100 + t))]


def step(optimizer: Any, of: list[Any], times: range) -> None:
    for t in times:
        apply(optimizer, gradients(t), of)


def built(name: str, **options: Any) -> tuple[Any, list[Any]]:
    of = variables()
    optimizer = make(ours, name, **options)
    optimizer.build(of)
    return optimizer, of


def native(name: str, of: list[Any], **options: Any) -> tuple[Any, list[Any]]:
    places = [fv.Variable(value, name=v.path) for v, value in zip(of, values(5), strict=True)]
    optimizer = make(fv.optimizers, name, **options)
    optimizer.build(places)
    return optimizer, places


def same_bits(mine: Any, slot: Any) -> bool:
    """Return whether a slot of Keras has the format and the bits of one of fastvar."""
    if isinstance(slot, fv.Variable):
        return as_array(mine).dtype == slot.dtype and as_array(mine).tobytes() == slot.value.tobytes()
    parts = zip((mine, mine.scales), (slot.codes, slot.scales), strict=True)
    return all(as_array(a).tobytes() == b.value.tobytes() for a, b in parts)


@pytest.mark.parametrize("option", OPTIONS)
@every_format
@every_class
def test_bits_are_those_of_fastvar(name: str, slot_dtype: str, option: str) -> None:
    options = {"slot_dtype": slot_dtype, "seed": 7, **OPTIONS[option]}
    mine, of = built(name, **options)
    other, places = native(name, of, **options)
    for t in range(4):
        apply(mine, gradients(t), of)
        other.apply(values(100 + t), places)
        for i, (v, w) in enumerate(zip(of, places, strict=True)):
            assert as_array(v).tobytes() == w.value.tobytes(), (t, v.path)
            for slot, kept in mine.slot_lists.items():
                if slot in other.slots and other.has_slot(slot, w):
                    assert same_bits(getattr(mine, kept)[i], other.slot(w, slot)), (t, v.path, slot)
    assert (mine.kernel_steps, mine.keras_steps) == (4, 0)


@every_format
def test_slots_are_variables_of_keras(slot_dtype: str) -> None:
    kernel, bias = keras.Variable(np.ones((64, 64), "float32"), name="kernel"), keras.Variable(0.0, name="bias")
    optimizer = ours.SGD(0.5, momentum=0.5, slot_dtype=slot_dtype, name="sgd")
    optimizer.build([kernel, bias])
    slots = optimizer.variables[2:]
    names = [*CODES[slot_dtype], "bias_momentum"]
    assert [v.path for v in slots] == [f"sgd/{name}" for name in names]
    dtypes = {"bfloat16": ["bfloat16"], "8bit": ["uint8", "float32"]}[slot_dtype]
    assert [v.dtype for v in slots] == [*dtypes, "float32"]
    assert all(isinstance(v, keras.Variable) for v in slots)


def test_the_seed_matters_and_can_be_set() -> None:
    ends = []
    for seed, later in ((1, 1), (2, 2), (1, 2)):
        optimizer, of = built("Adam", slot_dtype="8bit", seed=seed)
        step(optimizer, of, range(2))
        optimizer.seed = later
        step(optimizer, of, range(2, 4))
        ends.append(everything(optimizer, of))
    assert ends[0] != ends[1] != ends[2] != ends[0]


@every_format
def test_conditions_and_missing_gradients(slot_dtype: str) -> None:
    mine, of = built("Adam", slot_dtype=slot_dtype)
    other, places = native("Adam", of, slot_dtype=slot_dtype)
    for t in range(4):
        missing = [None if i == t % 3 else g for i, g in enumerate(gradients(t))]
        apply(mine, missing, of)
        other.apply([None if g is None else as_array(keras.Variable(g)) for g in missing], places)
    assert [as_array(v).tobytes() for v in of] == [w.value.tobytes() for w in places]


# Files.


def model_with(optimizer: Any) -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(80), keras.layers.Dense(2)])
    model.compile(optimizer=optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    return model


def train(model: Any, steps: range) -> None:
    for t in steps:
        rng, of = np.random.default_rng(t), model.trainable_variables
        grads = [keras.ops.convert_to_tensor(rng.standard_normal(v.shape).astype("float32")) for v in of]
        apply(model.optimizer, grads, of)


@every_format
@pytest.mark.parametrize("name", ["Adam", "Adagrad", "Lamb", "Muon", "SGD"])
def test_files_continue_bit_for_bit(name: str, slot_dtype: str, tmp_path: Path) -> None:
    if name not in NAMES:
        pytest.skip("Keras's has another meaning")
    more = {"momentum": 0.5} if name == "SGD" else {}
    model = model_with(make(ours, name, slot_dtype=slot_dtype, seed=3, **more))
    train(model, range(3))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for steps in (range(0), range(3, 6)):
        train(model, steps)
        train(again, steps)
        of = [everything(each.optimizer, each.trainable_variables) for each in (model, again)]
        assert of[0] == of[1]
    assert again.optimizer.kernel_steps == 3


@pytest.mark.parametrize(
    ("there", "here"), [("8bit", "bfloat16"), ("bfloat16", "8bit"), (None, "bfloat16"), (None, "8bit")]
)
def test_a_state_in_another_format_is_refused(there: str | None, here: str) -> None:
    model = model_with(ours.Adam(slot_dtype=there))
    train(model, range(2))
    other = model_with(ours.Adam(slot_dtype=here))
    before = everything(other.optimizer, [])
    weights = [v.numpy() for v in model.optimizer.variables]
    for load, given in (
        ("load_own_variables", {str(i): w for i, w in enumerate(weights)}),
        ("set_weights", weights),
    ):
        with pytest.raises(ValueError, match=r"^Adam: the saved state has other formats than slot_dtype and"):
            getattr(other.optimizer, load)(given)
    assert everything(other.optimizer, []) == before


def test_configs_have_what_is_set() -> None:
    own = {"slot_dtype": "8bit", "slot_dtype_min_size": 10, "seed": 5}
    optimizer = ours.Adam(0.5, **own)
    assert {name: optimizer.get_config()[name] for name in own} == own
    assert not {*own} & {*ours.Adam().get_config()}
    for again in (ours.deserialize(ours.serialize(optimizer)), ours.Adam.from_config(optimizer.get_config())):
        assert {name: getattr(again, name) for name in own} == own


@every_class
def test_signatures_are_those_of_keras_with_the_keywords(name: str) -> None:
    mine, theirs = (inspect.signature(getattr(library, name)) for library in (ours, keras.optimizers))
    own = ["slot_dtype", "slot_dtype_min_size", "master", "seed"]
    assert [p for p in mine.parameters.values() if p.name not in own] == [*theirs.parameters.values()]
    assert [mine.parameters[p].default for p in own] == [None, 4096, None, 0]


# Conversion.


@every_format
@every_class
def test_to_keras_decodes_and_from_keras_encodes(name: str, slot_dtype: str) -> None:
    mine, of = built(name, slot_dtype=slot_dtype, **EMA)
    step(mine, of, range(3))
    theirs = ours.to_keras(mine)
    assert not isinstance(theirs, ours.KernelStep)
    assert {v.dtype for v in theirs.variables} <= {"float32", "int32", "int64"}
    back = ours.from_keras(theirs, slot_dtype=slot_dtype)
    assert back.get_config() == mine.get_config()
    for a, b in zip(back.variables, mine.variables, strict=True):
        if slot_dtype == "bfloat16":
            assert as_array(a).tobytes() == as_array(b).tobytes(), a.path
        elif a.dtype == "uint8":  # the scale of a group is that of its largest number again
            stored = [fv.optimizer.quantized.Quantized(*map(as_array, (v, v.scales)), "float32") for v in (a, b)]
            np.testing.assert_allclose(*(each.value for each in stored), rtol=0.04, atol=1e-6)
    step(theirs, of, range(3, 4))
    step(back, of, range(3, 4))
    assert (back.kernel_steps, back.keras_steps) == (1, 0)


def test_loss_scale_optimizers_have_such_slots_inside() -> None:
    of = variables()
    inner = ours.Adam(0.0625, slot_dtype="8bit")
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    optimizer.build(of)
    optimizer.apply([keras.ops.multiply(g, 4.0) for g in gradients(0)], of)
    assert inner.kernel_steps == 1
    there = ours.to_keras(optimizer)
    assert len(there.variables) == len(optimizer.variables) - 4  # two slots of two variables have scales
    again = ours.from_keras(there, slot_dtype="8bit")
    assert len(again.variables) == len(optimizer.variables)


# Errors.


@every_format
def test_stateless_steps_are_refused(slot_dtype: str) -> None:
    optimizer, of = built("Adam", slot_dtype=slot_dtype)
    before = everything(optimizer, of)
    state = [[keras.ops.copy(v.value) for v in each] for each in (optimizer.variables, of)]
    with pytest.raises(ValueError, match=r"^Adam: slots in 16 or 8 bits need fastvar's kernels, .* stateless"):
        optimizer.stateless_apply(state[0], gradients(0), state[1])
    assert everything(optimizer, of) == before


def test_steps_that_only_keras_has_are_refused() -> None:
    class Mine(ours.SGD):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            raise AssertionError

    of = variables()
    optimizer = Mine(momentum=0.5, slot_dtype="bfloat16")
    optimizer.build(of)
    before = everything(optimizer, of)
    with pytest.raises(ValueError, match=r"^Mine: slots in 16 or 8 bits need .*: Mine overrides update_step; use"):
        step(optimizer, of, range(1))
    assert everything(optimizer, of) == before


def test_small_variables_may_run_as_in_keras() -> None:
    optimizer = ours.SGD(-0.5, momentum=0.5, slot_dtype="bfloat16")
    of = [keras.Variable(np.ones(5, "float32"))]
    apply(optimizer, [keras.ops.ones(5)], of)
    assert optimizer.keras_steps == 1


def test_a_rule_that_is_not_compiled_is_refused_before_anything_is_built() -> None:
    optimizer = ours.Ftrl(learning_rate_power=-0.75, slot_dtype="8bit")
    count = len(optimizer.variables)
    with pytest.raises(ValueError, match=r"^Ftrl: slots in 16 or 8 bits need .* not compiled"):
        optimizer.build(variables())
    assert (optimizer.built, len(optimizer.variables)) == (False, count)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_variables_of_16_bits_are_refused(dtype: str) -> None:
    v = keras.Variable(np.ones(5000, "float32"), dtype=dtype)
    optimizer = ours.Adam(slot_dtype="8bit")
    optimizer.build([v])
    before = everything(optimizer, [v])
    with pytest.raises(ValueError, match=r"need fastvar's kernels, which cannot run it: .*float32 or float64"):
        optimizer.apply([keras.ops.ones(5000)], [v])
    assert everything(optimizer, [v]) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slot_dtype": "float16"}, r"^Adam: slot_dtype must be 'bfloat16' or '8bit', got 'float16'"),
        ({"slot_dtype_min_size": -1}, "^Adam: slot_dtype_min_size must be"),
        ({"seed": -1}, "^Adam: seed must be"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_values_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours.Adam(**options)
    optimizer = ours.Adam()
    with pytest.raises(ValueError, match=message):
        setattr(optimizer, *next(iter(options.items())))


def test_formats_are_set_before_the_build() -> None:
    optimizer = ours.Adam()
    optimizer.slot_dtype, optimizer.slot_dtype_min_size = "8bit", 10
    optimizer.build(variables())
    for name, value in (("slot_dtype", None), ("slot_dtype_min_size", 5)):
        with pytest.raises(ValueError, match=rf"^Adam: {name} must be set before the optimizer is built"):
            setattr(optimizer, name, value)
    assert (optimizer.slot_dtype, optimizer.slot_dtype_min_size) == ("8bit", 10)


def test_a_slot_that_becomes_exact_is_refused() -> None:
    """With amsgrad, velocity must be exact."""
    optimizer, of = built("Adam", slot_dtype="8bit")
    step(optimizer, of, range(1))
    optimizer.amsgrad, optimizer._velocity_hats = True, optimizer._velocities
    before = everything(optimizer, of)
    with pytest.raises(
        ValueError, match="velocity_codes would be in the dtype of the variable if it were built now"
    ):
        step(optimizer, of, range(1, 2))
    assert everything(optimizer, of) == before


# Memory.


@every_format
def test_slots_that_are_moved_are_followed(slot_dtype: str) -> None:
    ends = []
    for moved in (False, True):
        optimizer, of = built("Adam", slot_dtype=slot_dtype)
        step(optimizer, of, range(2))
        move(optimizer.variables[2:] if moved else [])
        step(optimizer, of, range(2, 4))
        ends.append(everything(optimizer, of))
    assert ends[0] == ends[1]


@pytest.mark.skipif(BACKEND != "torch", reason="of the torch backend")
@every_format
def test_transposed_variables(slot_dtype: str) -> None:
    ends = []
    for transposed in (False, True):
        optimizer = ours.Adam(slot_dtype=slot_dtype, seed=2)
        ends.append(as_array(trained_matrix(optimizer, "float32", transposed)))
    if slot_dtype == "8bit":  # it is laid in C order
        np.testing.assert_array_equal(*ends)
    else:  # random bits belong to places in memory
        np.testing.assert_allclose(*ends, rtol=0.05, atol=1e-4)
