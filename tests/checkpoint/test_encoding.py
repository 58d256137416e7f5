"""State comes back as it was, to the type of every value, or its place is named; no number is taken unchecked."""

from __future__ import annotations

import collections
import enum
import json
import math
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import fastvar as fv
import fastvar.torch
from fastvar.checkpoint import encoding
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.writer import write
from fastvar.module import holds_variables


class Colour(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Words(list):  # type: ignore[type-arg]
    pass


class Real(float):
    pass


class Name(enum.StrEnum):
    A = "a"


class Dtyped(np.ndarray):  # type: ignore[type-arg]
    pass


LOST: dict[str, Any] = {
    "defaultdict": collections.defaultdict(int, a=1),
    "Counter": collections.Counter("ab"),
    "OrderedDict": collections.OrderedDict(a=1),
    "IntEnum": Colour.RED,
    "StrEnum": Name.A,
    "str": Text("a"),
    "float": Real(1.5),
    "list": Words([1]),
    "tuple": (1, 2),
    "namedtuple": collections.namedtuple("Point", "x y")(1, 2),
    "set": {1},
    "frozenset": frozenset({1}),
    "bytes": b"a",
    "complex": 1j,
    "range": range(3),
    "deque": collections.deque([1]),
    "function": math.sqrt,
    "torch": torch.zeros(2),
    "masked": np.ma.masked_array([1, 2], [True, False]),
    "matrix": np.ones((1, 1)).view(np.matrix),
    "recarray": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "subclass": np.zeros(2).view(Dtyped),
    "objects": np.array([None, 1]),
    "structured": np.zeros(2, [("a", "f4")]),
    "dates": np.array(["2026-01-01"], "datetime64[D]"),
    "date": np.datetime64("2026-01-01"),
    "strings": np.array(["a"]),
    "np.str_": np.str_("a"),
    "np.bytes_": np.bytes_(b"a"),
    "np.void": np.zeros((), [("a", "f4")])[()],
    "longdouble": np.longdouble(1),
    "longdoubles": np.zeros(2, np.longdouble),
    "variable": {"state": {1, 2}},
    "digits": 10**4300,
    "pair": "\ud83d\ude00",  # JSON's reader makes one character of it
    "pair key": {"\ud83d\ude00": 1},
    "int key": {1: 2},
    "bool key": {True: 2},
    "None key": {None: 2},
    "subclass key": {Text("a"): 1},
    "reserved": {"$scalar": 1},
    "nested": [[{"a": [(1,)]}]],
}


class Holder:
    """An object with `state_dict`, as others have it."""

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize("inside", ["dict", "object"])
@pytest.mark.parametrize("what", LOST)
def test_state_that_would_come_back_as_something_else_is_refused(what: str, inside: str, tmp_path: Path) -> None:
    state = {"kept": 1.5, "deep": [0, {"key": LOST[what]}]}
    mine = state if inside == "dict" else Holder(state)
    with pytest.raises((TypeError, ValueError)) as caught:
        fv.Checkpoint(mine=mine).save(tmp_path / "a.h5")
    message = str(caught.value)
    assert "state['mine']['deep'][1]['key']" in message or "reserved" in message
    assert not list(tmp_path.iterdir())


def test_the_type_is_named(tmp_path: Path) -> None:
    for value, words in (
        (collections.Counter(), r"state\['s'\]\['x'\]: must be .*; got collections.Counter"),
        ((1,), "got tuple"),
        (np.array([None]), "got numpy.ndarray of dtype object"),
        (torch.zeros(1), "got torch.Tensor"),
        ({2: 1}, r"state\['s'\]\['x'\]: keys must be str, got 2 of type int"),
    ):
        with pytest.raises(TypeError, match=words):
            fv.Checkpoint(s={"x": value}).save(tmp_path / "a.h5")
    with pytest.raises(TypeError, match=r"counts= must be .* a dict.*, got Counter"):
        fv.Checkpoint(counts=collections.Counter("abc"))


def fortran() -> Any:
    return np.asfortranarray(np.arange(6.0).reshape(2, 3))


SCALARS = [
    *(np.dtype(name).type(3) for name in ("int8", "uint64", "float16", "float32", "float64", "complex64")),
    *(np.bool_(True), np.float64(math.nan), np.float32(-0.0), np.complex128(1 - 2j), np.uint64(2**64 - 1)),
    *(ml_dtypes.bfloat16(1.5), ml_dtypes.float8_e5m2(math.inf), np.float32(0.1), np.int64(-(2**63))),
]
KEPT: dict[str, Any] = {
    "plain": [None, True, False, 0, -1, 2**200, 0.1, -0.0, 5e-324, math.inf, -math.inf, math.nan, "", "ä\0😀"],
    "digits": [10**4300 - 1, -(10**4300) + 1],
    "lone surrogates": ["\ud83d", "\ude00\ud83d", {"\ud800": 1}],
    "empty": [[], {}, [[]], {"": {}}],
    "numbers that look alike": [1, 1.0, True, np.int64(1), np.float64(1), np.array(1.0), np.array([1])],
    "scalars": SCALARS,
    "rank 0": [np.array(2.5), np.array(3, np.int8), np.array(True)],
    "no elements": np.zeros((2, 0, 3), np.int16),
    "strided": np.arange(20)[::3],
    "negative strides": np.arange(6.0).reshape(2, 3)[::-1, ::-1],
    "fortran": fortran(),
    "swapped": np.arange(3, dtype=">f8" if np.little_endian else "<f8"),
    "swapped fortran": fortran().astype(">i4", order="F"),
    "swapped rank 0": np.array(7, ">u2"),
    "read-only": np.frombuffer(b"abcd", np.uint8),
    "bfloat16": np.ones(3, ml_dtypes.bfloat16),
    "complex": np.array([1 + 2j, complex(math.nan, -0.0)]),
    "nans": np.array([math.nan, -math.inf, -0.0]),
}


def same(one: Any, two: Any) -> bool:
    """Whether two values are of one type and equal to the bit, by NumPy and by `repr` alone."""
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray):
        kept = pickle.loads(pickle.dumps(two))  # which keeps C and Fortran order
        orders = [(a.flags.c_contiguous, a.flags.fnc) for a in (one, kept)]
        values = [(a.dtype, a.dtype.isnative, a.shape, a.tobytes()) for a in (one, two)]
        return orders[0] == orders[1] and values[0] == values[1]
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return repr(one) == repr(two)


@pytest.mark.parametrize("what", KEPT)
def test_state_comes_back_as_it_was(what: str, tmp_path: Path) -> None:
    state, holder = {"value": KEPT[what]}, Holder([KEPT[what]])
    checkpoint = fv.Checkpoint(state=state, holder=holder)
    path = checkpoint.save(tmp_path / "a.h5")
    state.clear()
    holder.state = None
    checkpoint.restore(path)
    assert same(state["value"], KEPT[what])
    assert same(holder.state[0], KEPT[what])


def test_what_stands_in_two_places_comes_back_as_one(tmp_path: Path) -> None:
    losses, best = [1.0, 0.5], np.arange(3.0)
    state: dict[str, Any] = {"losses": losses, "all": {"train": losses}, "best": best, "last": [best]}
    state["cycle"] = [state["all"]]
    state["all"]["self"] = state["cycle"]
    state["equal"] = [1.0, 0.5]
    checkpoint = fv.Checkpoint(state=state)
    path = checkpoint.save(tmp_path / "a.h5")
    state.clear()
    checkpoint.restore(path)
    assert state["losses"] == [1.0, 0.5]
    assert state["all"]["train"] is state["losses"] is not state["equal"]
    assert state["last"][0] is state["best"]
    assert state["cycle"][0] is state["all"]
    assert state["all"]["self"] is state["cycle"]
    assert sum(name.startswith("state/arrays/") for name, _ in fv.list_variables(path)) <= 1


def test_state_cannot_contain_itself_nor_point_to_nothing(tmp_path: Path) -> None:
    state: dict[str, Any] = {"a": 1, "b": []}
    checkpoint = fv.Checkpoint(state=state)
    good = Path(checkpoint.save(tmp_path / "a.h5"))
    state["b"].append(state)
    with pytest.raises(ValueError, match=r"state must not contain itself, as it does at \['b', 0\]"):
        checkpoint.save(tmp_path / "b.h5")
    state["b"].clear()
    for bad in (["c"], ["b", 0], "x", 7, None, [[]], ["a"], ["c", "d"], [1.5], {}):
        path = edited(good, lambda state, bad=bad: state["state"].update(c={"$same": bad}))
        with pytest.raises(ValueError, match="state: there is n"):
            checkpoint.restore(path)
    assert state == {"a": 1, "b": []}


def test_numbers_in_long_lists_are_not_looked_at_one_by_one() -> None:
    """A call of Python for each would make each save of a long history slow."""
    calls: list[list[str]] = []
    for length in (10, 100_000):
        checkpoint = fv.Checkpoint(state={"losses": [0.5] * length, "deep": [{"steps": [None, 1.5] * length}]})
        made: list[str] = []
        calls.append(made)
        sys.setprofile(lambda frame, event, argument, made=made: made.append(event))
        try:
            state = checkpoint.collect()[2]
            encoding.check(state, "state")
        finally:
            sys.setprofile(None)
    assert len(calls[0]) == len(calls[1])


def test_variables_among_state_are_found() -> None:
    w = fv.Variable(1.0)
    cyclic: list[Any] = [1.0]
    cyclic.append(cyclic)
    for state in ([1, 2.5, "a", None], {"a": [[1], {"b": [True]}]}, {}, [], cyclic, {"x": np.zeros(3)}):
        assert not holds_variables(state)
        assert holds_variables([state, w])
        assert holds_variables({"a": [state, [{"b": (w,)}]]})


def edited(path: Path, change: Any, step: int = 0) -> Path:
    """Write a whole, verified file whose state is that of another, changed."""
    with File(path) as file:
        tensors, state = {name: file.read(name) for name in file.entries}, file.state
        step = file.step
    changed = change(state)
    other = path.with_name("edited.h5")
    write(other, tensors, state if changed is None else changed, step=step, replace=True)
    return other


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


FLOATS = [-1, 7, "7", True, [1.0, 2.0], None, {}, [["a"]]]  # what no number of an optimizer can be
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
    """Return the paths to all numbers in a state, of long lists to the first and last."""
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
                continue  # may be one
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
