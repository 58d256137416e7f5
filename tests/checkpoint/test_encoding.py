"""State is restored exactly, with the type of every value, or an error names the value."""

from __future__ import annotations

import collections
import enum
import math
import pickle
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
from fastvar.module import holds_variables
from tests.support.edited import edited


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
    "pair": "\ud83d\ude00",  # JSON reads it as one character
    "pair key": {"\ud83d\ude00": 1},
    "int key": {1: 2},
    "bool key": {True: 2},
    "None key": {None: 2},
    "subclass key": {Text("a"): 1},
    "reserved": {"$scalar": 1},
    "nested": [[{"a": [(1,)]}]],
}


class Holder:
    """An object with `state_dict`, as in other libraries."""

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
    """Return whether two values have the same type and the same bits, using only NumPy and `repr`."""
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray):
        kept = pickle.loads(pickle.dumps(two))  # it keeps C and Fortran order
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
    """One Python call per element would make saves of a long history slow."""
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
