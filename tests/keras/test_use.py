"""Classes, files, errors and fallbacks, on the backend of this process; see test_backends.py."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import fastvar.keras.optimizers as ours
from fastvar.keras import supported
from fastvar.keras.optimizers.planning import KerasPlan
from fastvar.keras.supported import Unfit
from tests.support.keras_steps import (
    BACKEND,
    NAMES,
    apply,
    as_array,
    assert_same,
    everything,
    gradients,
    make,
    pair,
    variables,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Gradients do not exist"),
]
every_class = pytest.mark.parametrize("name", NAMES)


def run(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    given = {**os.environ, **environment}
    return subprocess.run(command, check=False, timeout=120, capture_output=True, text=True, env=given, cwd=cwd)


@pytest.mark.parametrize("module", ["fastvar", "fastvar.torch"])
def test_import_does_not_load_keras(module: str) -> None:
    assert run(f"import sys, {module}; sys.exit('keras' in sys.modules)").returncode == 0


def test_the_numpy_backend_does_not_load_pytorch() -> None:
    code = "import sys, fastvar.keras; sys.exit('torch' in sys.modules)"
    assert run(code, KERAS_BACKEND="numpy").returncode == 0


def test_fastvar_finds_it() -> None:
    code = "import fastvar as fv; print(fv.keras.optimizers.Adam().name)"
    assert run(code, KERAS_BACKEND="numpy").stdout == "adam\n"


def test_all_classes_of_keras_are_here() -> None:
    theirs = {n for n, c in vars(keras.optimizers).items() if isinstance(c, type) and n not in ("Optimizer",)}
    assert theirs - {*ours.__all__} <= {"MultiOptimizer", "OptimizerMap"}


@every_class
def test_classes_are_those_of_keras(name: str) -> None:
    mine, theirs = getattr(ours, name), getattr(keras.optimizers, name)
    assert issubclass(mine, theirs)
    for method in ("apply", "from_config", "update_step"):
        assert getattr(mine, method).__qualname__ == getattr(theirs, method).__qualname__
    assert mine.keras_class() is theirs
    assert mine(name="same").get_config() == theirs(name="same").get_config()


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match=r"has no legacy; keras.optimizers.legacy is there"):
        _ = ours.legacy
    with pytest.raises(AttributeError, match=r"'fastvar.keras.optimizers' has no attribute 'Adan'$"):
        _ = ours.Adan


# Releases and backends.


@pytest.mark.parametrize(("version", "backend"), [("3.10.0", "torch"), ("3.15.1", "numpy"), ("3.99", "torch")])
def test_supported_releases_and_backends_pass(version: str, backend: str) -> None:
    supported.check(version, backend)


@pytest.mark.parametrize("version", ["2.15.0", "3.8.0", "3.9.2", "4.0.0"])
def test_other_releases_are_refused(version: str) -> None:
    with pytest.raises(ImportError, match=rf"^fastvar.keras: needs keras>=3.10,<4.0, found {version}$"):
        supported.check(version, "torch")


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "openvino"])
def test_other_backends_are_refused(backend: str) -> None:
    better = "use keras.optimizers"
    with pytest.raises(ImportError, match=rf"backend to be torch or numpy, found {backend}; {better}"):
        supported.check("3.15.1", backend)


def test_the_import_refuses_jax() -> None:
    done = run("import fastvar.keras", KERAS_BACKEND="jax")
    assert "ImportError: fastvar.keras: needs Keras's backend to be torch or numpy, found jax; use" in done.stderr


# Files.


def model_with(optimizer: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((4,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile(optimizer=optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    return model


def train(model: Any, steps: range) -> None:
    for t in steps:
        rng = np.random.default_rng(t)
        of = model.trainable_variables
        grads = [keras.ops.convert_to_tensor(rng.standard_normal(v.shape).astype("float32")) for v in of]
        model.optimizer.apply(grads, of)


def state(model: Any) -> list[bytes]:
    return everything(model.optimizer, model.trainable_variables)


@every_class
def test_files_continue_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = model_with(make(ours, name, use_ema=True, weight_decay=0.25))
    train(model, range(3))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is getattr(ours, name)
    assert state(again) == state(model)
    train(model, range(3, 6))
    train(again, range(3, 6))
    assert state(again) == state(model)
    assert again.optimizer.kernel_steps == 3


@every_class
def test_files_of_keras_continue_here(name: str, tmp_path: Path) -> None:
    model = model_with(make(keras.optimizers, name, use_ema=True))
    train(model, range(3))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    theirs = again.optimizer
    again.optimizer = ours.from_keras(theirs)
    assert type(again.optimizer) is getattr(ours, name)
    assert state(again) == state(model)
    train(again, range(3, 6))
    assert again.optimizer.kernel_steps == 3


@every_class
def test_files_for_keras_alone(name: str, tmp_path: Path) -> None:
    model = model_with(make(ours, name, use_ema=True))
    train(model, range(3))
    model.compile(optimizer=ours.to_keras(model.optimizer), loss="mse")
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert not isinstance(again.optimizer, ours.KernelStep)
    assert state(again) == state(model)


def test_files_are_read_without_fastvar(tmp_path: Path) -> None:
    model = model_with(make(ours, "Adam"))
    train(model, range(3))
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "state.npz", *map(as_array, model.optimizer.variables))
    code = (
        "import keras, numpy as np, sys\n"
        "model = keras.saving.load_model('model.keras', custom_objects={'fastvar>Adam': keras.optimizers.Adam})\n"
        "for v, there in zip(model.optimizer.variables, np.load('state.npz').values(), strict=True):\n"
        "    np.testing.assert_array_equal(v.numpy(), there)\n"
        "sys.exit('fastvar' in sys.modules or not isinstance(model.optimizer, keras.optimizers.Adam))"
    )
    done = run(code, tmp_path, KERAS_BACKEND=BACKEND)
    assert done.returncode == 0, done.stderr


@every_class
def test_configs_and_pickles_make_the_same_class(name: str) -> None:
    optimizer = make(ours, name)
    of = variables()
    optimizer.build(of)
    apply(optimizer, gradients(0), of)
    config = ours.serialize(optimizer)
    assert config["registered_name"] == f"fastvar>{name}"
    for again in (ours.deserialize(config), pickle.loads(pickle.dumps(getattr(ours, name)(learning_rate=0.25)))):
        assert type(again) is type(optimizer)
    assert again.get_config()["learning_rate"] == 0.25


# Conversion.


def test_loss_scale_optimizers_are_converted_inside() -> None:
    of = variables()
    theirs = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.0625), initial_scale=4.0)
    theirs.build(of)
    theirs.apply([keras.ops.multiply(g, 4.0) for g in gradients(0)], of)
    mine = ours.from_keras(theirs)
    assert type(mine.inner_optimizer) is ours.Adam
    assert [v.numpy().tobytes() for v in mine.variables] == [v.numpy().tobytes() for v in theirs.variables]
    mine.apply([keras.ops.multiply(g, 4.0) for g in gradients(1)], of)
    assert mine.inner_optimizer.kernel_steps == 1
    back = ours.to_keras(mine)
    assert not isinstance(back.inner_optimizer, ours.KernelStep)
    assert [v.numpy().tobytes() for v in back.variables] == [v.numpy().tobytes() for v in mine.variables]


def test_schedules_and_functions_are_handed_over() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    for rate in (schedule, lambda: 0.25):
        theirs = ours.to_keras(ours.SGD(rate))
        assert theirs._learning_rate is rate
        assert ours.from_keras(theirs)._learning_rate is rate


@pytest.mark.parametrize("given", [1, "adam", keras.optimizers.Optimizer(0.5)])
def test_what_cannot_be_converted_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="from_keras: must be given an optimizer of Keras that fastvar has"):
        ours.from_keras(given)
    with pytest.raises(TypeError, match=r"to_keras: must be given an optimizer of fastvar\.keras"):
        ours.to_keras(given)


def test_subclasses_are_not_converted() -> None:
    class Mine(keras.optimizers.SGD):
        pass

    with pytest.raises(TypeError, match="from_keras: must be given an optimizer of Keras"):
        ours.from_keras(Mine())


# Steps as in Keras.


def assert_fell_back(mine: Any, reason: str, steps: int = 1) -> None:
    assert (mine.kernel_steps, mine.keras_steps) == (0, steps)
    assert reason in mine.keras_reason


@every_class
def test_stateless_steps_are_keras_s(name: str) -> None:
    mine, of, other, theirs = pair(name)
    before = everything(mine, of)
    results = []
    for optimizer, its in ((mine, of), (other, theirs)):
        copies = [[keras.ops.copy(v.value) for v in each] for each in (optimizer.variables, its)]
        given = copies[0], gradients(0), copies[1]
        results.append(optimizer.stateless_apply(*given))
    assert everything(mine, of) == before
    for (a, b), (c, d) in [results]:
        for x, y in zip([*a, *b], [*c, *d], strict=True):
            np.testing.assert_allclose(*(keras.ops.convert_to_numpy(each) for each in (x, y)), atol=1e-5)
    assert_fell_back(mine, "stateless")


FALLBACKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "learning_rate": ("SGD", {"learning_rate": -0.5}, "learning_rate must be >= 0"),
    "clipnorm": ("Adam", {"clipnorm": -1.0}, "clipnorm must be > 0"),
    "momentum": ("RMSprop", {"momentum": 1.5}, "momentum must be >= 0 and <= 1"),
    "power": ("Ftrl", {"learning_rate_power": -0.75}, "not compiled with these hyperparameters"),
}


@pytest.mark.parametrize("what", FALLBACKS)
def test_what_only_keras_allows_is_keras_s(what: str) -> None:
    name, options, reason = FALLBACKS[what]
    mine, of, other, theirs = pair(name, **options)
    for t in range(3):
        apply(mine, gradients(t), of)
        apply(other, gradients(t), theirs)
        assert_same(mine, of, other, theirs, f"step {t}")
    assert_fell_back(mine, reason, 3)


def test_16_bits_are_keras_s() -> None:
    mine, of, other, theirs = pair("SGD", "float16")
    apply(mine, gradients(0, "float16"), of)
    apply(other, gradients(0, "float16"), theirs)
    assert everything(mine, of) == everything(other, theirs)
    assert_fell_back(mine, "float16")


def test_steps_of_subclasses_are_theirs() -> None:
    class Mine(ours.SGD):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            variable.assign_add(keras.ops.ones_like(variable))

    of = variables()
    before = [as_array(v) for v in of]
    mine = Mine()
    mine.build(of)
    apply(mine, gradients(0), of)
    for v, b in zip(of, before, strict=True):
        np.testing.assert_array_equal(as_array(v), b + np.float32(1))
    assert_fell_back(mine, "Mine overrides update_step")


def test_subclasses_without_a_step_run_in_the_kernels() -> None:
    class Mine(ours.SGD):
        pass

    of = variables()
    mine = Mine()
    mine.build(of)
    apply(mine, gradients(0), of)
    assert mine.kernel_steps == 1


def test_kernels_go_on_after_a_step_of_keras() -> None:
    mine, of, other, theirs = pair("Adam")
    for t in range(6):
        for optimizer in (mine, other):
            optimizer.clipnorm = -1.0 if t in (2, 3) else None
        apply(mine, gradients(t), of)
        apply(other, gradients(t), theirs)
        assert_same(mine, of, other, theirs, f"step {t}")
    assert (mine.kernel_steps, mine.keras_steps) == (4, 2)


def test_variables_that_gradients_overwrite() -> None:
    made = pair("Adam")[:2] + pair("Adam")[2:]
    for of in made[1::2]:
        of[1].overwrite_with_gradient = True
    mine, of, other, theirs = make(ours, "Adam"), made[1], make(keras.optimizers, "Adam"), made[3]
    for t in range(3):
        apply(mine, gradients(t), of)
        apply(other, gradients(t), theirs)
        assert_same(mine, of, other, theirs, f"step {t}")
    assert (mine.kernel_steps, mine.keras_steps) == (3, 0)


def test_an_earlier_muon_is_keras_s() -> None:
    """Before Keras 3.13 it had another meaning, and no `adam_weight_decay`."""
    of = variables()
    mine = make(ours, "Muon")
    mine.build(of)
    mine.__dict__.pop("adam_weight_decay", None)
    with pytest.raises(Unfit, match="'Muon' object has no attribute 'adam_weight_decay'"):
        KerasPlan(mine)


# Errors.


def test_a_refused_step_changes_nothing() -> None:
    of = variables()
    optimizer = make(ours, "Adam", use_ema=True, global_clipnorm=1.0)
    optimizer.build(of)
    apply(optimizer, gradients(0), of)
    before = everything(optimizer, of)
    bad = [*gradients(1)[:4], keras.ops.ones((6, 5))]
    with pytest.raises(
        ValueError, match=r"^Adam: gradient of 'alone/square': must have shape \(6, 6\), got \(6, 5\)"
    ):
        optimizer.apply(bad, of)
    assert everything(optimizer, of) == before
    apply(optimizer, gradients(1), of)
    assert optimizer.kernel_steps == 2


def test_unknown_variables_are_keras_s_error() -> None:
    optimizer, of, *_ = pair("SGD")
    apply(optimizer, gradients(0), of)
    for bad in ([*of[:4], keras.Variable(np.ones((6, 6), np.float32))], [*of[1:], keras.Variable(0.0)]):
        before = everything(optimizer, of)
        with pytest.raises(ValueError, match="Unknown variable"):
            optimizer.apply(gradients(1), bad)
        assert everything(optimizer, of) == before
    apply(optimizer, gradients(1)[::-1], of[::-1])
    assert optimizer.kernel_steps == 2


def test_gradients_may_be_arrays_lists_and_variables() -> None:
    of, its = variables(), variables()
    first, second = make(ours, "SGD"), make(ours, "SGD")
    first.build(of)
    second.build(its)
    for t in range(2):
        grads = [as_array(keras.Variable(g)) for g in gradients(t)]
        first.apply(grads, of)
        second.apply([grads[0].T.copy().T, grads[1].tolist(), *map(keras.Variable, grads[2:4]), grads[4] + 0], its)
    assert [as_array(v).tobytes() for v in of] == [as_array(v).tobytes() for v in its]
    assert second.kernel_steps == 2


def test_gradients_may_be_the_weights() -> None:
    of = variables()
    optimizer = make(ours, "SGD", learning_rate=0.5)
    optimizer.build(of)
    before = [as_array(v) for v in of]
    optimizer.apply([v.value for v in of], of)
    for v, b in zip(of, before, strict=True):
        np.testing.assert_array_equal(as_array(v), b / 2)
    assert optimizer.kernel_steps == 1


def test_variables_that_are_moved_or_assigned_are_followed() -> None:
    mine, of, other, theirs = pair("Adam")
    for t in range(6):
        for optimizer, its in ((mine, of), (other, theirs)):
            if t == 2:
                its[0].assign(keras.ops.ones((7, 5)))
                optimizer._momentums[1].assign(keras.ops.ones((5,)))
            if t == 4 and optimizer is mine:
                for v in (its[2], optimizer._velocities[4]):
                    v._value = keras.ops.copy(v.value) if BACKEND == "numpy" else type(v._value)(v._value.clone())
            apply(optimizer, gradients(t), its)
        assert_same(mine, of, other, theirs, f"step {t}")
    assert (mine.kernel_steps, mine.keras_steps) == (6, 0)
