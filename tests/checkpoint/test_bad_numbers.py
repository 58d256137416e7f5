"""Steps, numbers and states of a file, and the step of a save, are checked before anything changes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from fastvar.checkpoint.reader import File
from tests.support.edited import edited

BAD = [-1, 1.9, "7", 1e308, True, math.nan, [1], None, {}, -math.inf, 10**400, 2**63]


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("built", [True, False])
def test_steps_that_cannot_be_are_refused(bad: Any, built: bool, tmp_path: Path) -> None:
    w = fv.Variable([1.0], name="w")
    optimizer = fv.optimizers.Adam()
    optimizer.apply([[1.0]], [w])
    path = Path(fv.Checkpoint(w=w, optimizer=optimizer).save(tmp_path / "a.h5"))
    path = edited(path, lambda state: state["optimizer"].update(steps=bad))
    here, fresh = fv.Variable([5.0], name="w"), fv.optimizers.Adam()
    if built:
        fresh.build([here])
    with pytest.raises(ValueError, match="steps must be a whole number"):
        fv.Checkpoint(w=here, optimizer=fresh).restore(path)
    assert (here[0], fresh.iterations, bool(fresh.variables)) == (5.0, 0, built)


def numbers_of(name: str) -> Any:
    def change(state: Any, value: Any) -> None:
        state["optimizer"]["numbers"][name] = value

    return change


FLOATS = [-1, 7, "7", True, [1.0, 2.0], None, {}, [["a"]]]  # values that no number of an optimizer can have
COUNTS = [*FLOATS, -1.0, 1.9, 1e308, math.nan, math.inf]
NUMBERS: list[tuple[Any, str, list[Any]]] = [
    (fv.optimizers.SGD, "skipped", COUNTS),
    (fv.optimizers.Prodigy, "distance", [*FLOATS, -1.0, 0.0, -math.inf]),
    (fv.optimizers.Prodigy, "numerator", FLOATS),
    (fv.torch.NAdam, "mu_product 0 at", COUNTS),
    (fv.torch.NAdam, "mu_product 0 next", FLOATS),
    (lambda: fv.optimizers.LossScaleOptimizer(fv.optimizers.SGD()), "skipped", COUNTS),
    (
        lambda: fv.optimizers.LossScaleOptimizer(fv.optimizers.SGD()),
        "loss_scale",
        [
            *(3.0, [1.0, 2.0], [-1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [math.nan, 1.0, 0.0], [math.inf, 1.0, 0.0]),
            *([2.0, 1.5, 0.0], [2.0, -1.0, 0.0], [2.0, 1.0, math.nan], ["2", 1.0, 0.0], [2, 1.0, 0.0], [True] * 3),
        ],
    ),
]


@pytest.mark.parametrize(("make", "name", "values"), NUMBERS, ids=[f"{n[1]}-{i}" for i, n in enumerate(NUMBERS)])
def test_numbers_that_cannot_be_are_refused(make: Any, name: str, values: list[Any], tmp_path: Path) -> None:
    w = fv.Variable([1.0, 2.0], name="w")
    optimizer = make()
    optimizer.build([w])
    optimizer.apply([[1.0, 1.0]])
    checkpoint = fv.Checkpoint(w=w, optimizer=optimizer)
    good = Path(checkpoint.save(tmp_path / "a.h5"))
    before = json.dumps({k: v.tolist() for k, v in optimizer._state.numbers.items()})
    for value in values:
        path = edited(good, lambda state, value=value: numbers_of(name)(state, value))
        with pytest.raises(ValueError, match=name.split(maxsplit=1)[0]):
            checkpoint.restore(path)
        assert json.dumps({k: v.tolist() for k, v in optimizer._state.numbers.items()}) == before
    checkpoint.restore(good)


def config_of(*path: Any) -> Any:
    def change(state: Any, value: Any) -> None:
        place = state["optimizer"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


RATES = [-1, -0.1, "7", True, math.nan, math.inf, [1], None, {}, 10**400]
CONFIGS = {
    "number": (config_of("parameters", "beta_1"), [*RATES, 1.9, 1e308]),
    "own": (config_of("groups", 1, "own", "weight_decay"), [x for x in RATES if x is not None]),
    "not of a group": (config_of("groups", 1, "own", "clipnorm"), [1.0]),
    "unknown": (config_of("parameters", "beta_7"), [1.0]),
    "integer": (config_of("parameters", "gradient_accumulation_steps"), [-1, 1, 1.9, "7", True, math.nan, [2]]),
    "schedule": (config_of("parameters", "learning_rate", "config", "decay_steps"), [*RATES, 0]),
    "state": (config_of("groups", 1, "own", "learning_rate", "config", "wait"), [-1, 1.9, "7", True, [1]]),
    "best": (config_of("groups", 1, "own", "learning_rate", "config", "best"), ["7", True, math.nan, [1]]),
    "class": (config_of("parameters", "learning_rate", "class_name"), ["Adam", "None", 7, None]),
    "extra": (config_of("parameters", "learning_rate", "config", "extra"), [1]),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_hyperparameters_that_cannot_be_are_refused(what: str, tmp_path: Path) -> None:
    v, w = fv.Variable([1.0], name="v"), fv.Variable([1.0], name="w")
    optimizer = fv.optimizers.Adam(fv.schedules.CosineDecay(0.1, 10))
    group = {"variables": [w], "weight_decay": 0.5, "learning_rate": fv.schedules.ReduceOnPlateau(0.5)}
    optimizer.build([v, group])
    optimizer.apply([[1.0], [1.0]])
    checkpoint = fv.Checkpoint(v=v, w=w, optimizer=optimizer)
    good = Path(checkpoint.save(tmp_path / "a.h5"))
    change, values = CONFIGS[what]
    before = repr((v, w, optimizer.get_config(), optimizer.groups, optimizer.variables))
    for value in values:
        path = edited(good, lambda state, value=value: change(state, value))
        with pytest.raises(ValueError, match="nothing was changed"):
            checkpoint.restore(path)
        assert repr((v, w, optimizer.get_config(), optimizer.groups, optimizer.variables)) == before
    checkpoint.restore(good)


GENERATORS: dict[str, Any] = {
    "python": lambda: random.Random(1),
    "pcg": lambda: np.random.default_rng(1),
    "dxsm": lambda: np.random.Generator(np.random.PCG64DXSM(1)),
    "philox": lambda: np.random.Generator(np.random.Philox(1)),
    "sfc": lambda: np.random.SFC64(1),
    "mt": lambda: np.random.Generator(np.random.MT19937(1)),
    "legacy": lambda: np.random.RandomState(1),
}


def leaves(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all numbers in a state; in long lists, only to the first and last."""
    if isinstance(state, dict) and "$array" not in state:
        return [found for key in state for found in leaves(state[key], (*path, key))]
    if isinstance(state, list):
        return [found for i in sorted({0, len(state) - 1}) for found in leaves(state[i], (*path, i))]
    return [path]


@pytest.mark.parametrize("kind", GENERATORS)
def test_states_of_generators_that_cannot_be_are_refused(kind: str, tmp_path: Path) -> None:
    generator = GENERATORS[kind]()
    w = fv.Variable([1.0])
    if hasattr(generator, "standard_normal"):
        generator.standard_normal(3)
    checkpoint = fv.Checkpoint(w=w, generator=generator)
    good = Path(checkpoint.save(tmp_path / "a.h5"))
    with File(good) as file:
        paths = leaves(file.state["generator"])
    before = repr(generators_state(generator))
    for path in paths:
        for bad in (-1, 1.9, "7", True, math.nan, [1], 1e308, 2**200, 10**400, {}):

            def change(state: Any, path: Any = path, bad: Any = bad) -> None:
                place = state["generator"]
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = bad

            if bad in (1.9, 1e308) and (path[-1] == "gauss" or (kind == "python" and path == (2,))):
                continue  # it can be 1
            with pytest.raises(ValueError, match="generator: the saved state"):
                checkpoint.restore(edited(good, change))
            assert repr(generators_state(generator)) == before
    checkpoint.restore(good)


def generators_state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return getattr(generator, "bit_generator", generator).state


def test_positions_beyond_the_words_of_a_generator_are_refused(tmp_path: Path) -> None:
    for kind, path, beyond in (("mt", ("state", "pos"), 625), ("philox", ("buffer_pos",), 5)):
        checkpoint = fv.Checkpoint(generator=GENERATORS[kind]())
        good = Path(checkpoint.save(tmp_path / f"{kind}.h5"))

        def change(state: Any, path: Any = path, beyond: int = beyond) -> None:
            place = state["generator"]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = beyond

        with pytest.raises(ValueError, match="out of range"):
            checkpoint.restore(edited(good, change))


@pytest.mark.parametrize("step", [-1, 1.9, "7", 1e308, True, math.nan, [1], 2**64, 10**400, 1j], ids=str)
def test_steps_that_are_no_whole_number_are_refused(step: Any, tmp_path: Path) -> None:
    w = fv.Variable([1.0], name="w")
    checkpoint = fv.Checkpoint(w=w)
    with pytest.raises((TypeError, ValueError), match="step must be a whole number"):
        checkpoint.save(tmp_path / "a.h5", step=step)
    with pytest.raises((TypeError, ValueError), match="step must be a whole number"):
        fv.Saver([w]).save(tmp_path / "a", global_step=step)
    manager = fv.CheckpointManager(checkpoint, tmp_path / "m", step_counter=lambda: step)
    for given in ({}, {"step": step}):
        with pytest.raises((TypeError, ValueError), match="step must be a whole number"):
            manager.save(**given)
    assert not manager.checkpoints


def test_steps_may_come_from_any_whole_number(tmp_path: Path) -> None:
    for i, step in enumerate(
        (7, np.int64(2**62 + 1), np.uint64(2**64 - 1), 3.0, fv.Variable(5), fv.Variable(6.0))
    ):
        path = fv.Checkpoint(w=fv.Variable(1.0)).save(tmp_path / f"{i}.h5", step=step)
        with File(path) as file:
            assert file.step == int(step)


@pytest.mark.parametrize("bad", ["0.5", b"1", [1.0, 2.0], None, "x"], ids=str)
def test_metrics_that_are_no_number_are_refused(bad: Any, tmp_path: Path) -> None:
    manager = fv.CheckpointManager(fv.Checkpoint(w=fv.Variable(1.0)), tmp_path)
    with pytest.raises(TypeError, match="metric 'loss' must be a number"):
        manager.save(metrics={"loss": bad})
    with pytest.raises(TypeError, match="metric 1 must"):
        manager.save(metrics={1: 0.5})  # type: ignore[dict-item]
    assert not manager.checkpoints
