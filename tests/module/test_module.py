"""Modules find their variables, name them by path, and freeze all of them with one assignment."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import fastvar as fv


class Dense(fv.Module):
    def __init__(self, n: int, m: int) -> None:
        self.kernel = fv.Variable(np.zeros((n, m), np.float32))
        self.bias = fv.Variable(np.zeros(m, np.float32))


class Net(fv.Module):
    def __init__(self) -> None:
        self.encoder = [Dense(4, 3), Dense(3, 3)]
        self.heads = {"left": Dense(3, 2), "right": (Dense(3, 1),)}
        self.scale = fv.Variable(1.0, trainable=False, name="temperature")
        self.note = "no variable"


NAMES = [
    "encoder/0/kernel",
    "encoder/0/bias",
    "encoder/1/kernel",
    "encoder/1/bias",
    "heads/left/kernel",
    "heads/left/bias",
    "heads/right/0/kernel",
    "heads/right/0/bias",
    "temperature",
]


def test_variables_are_found_in_order_and_named_by_path() -> None:
    net = Net()
    assert list(net.named_variables()) == NAMES
    assert [v.name for v in net.variables] == NAMES
    assert [v.name for v in net.trainable_variables] == NAMES[:-1]
    assert [v.name for v in net.non_trainable_variables] == ["temperature"]


def test_names_are_those_of_the_outermost_module() -> None:
    net = Net()
    inner = net.encoder[1]
    assert [v.name for v in inner.variables] == ["kernel", "bias"]
    assert [v.name for v in net.variables] == NAMES
    assert list(inner.named_variables()) == ["kernel", "bias"]
    assert inner.kernel.name == "encoder/1/kernel"


def test_names_are_the_same_in_every_instance() -> None:
    first, second = Net(), Net()
    assert list(first.named_variables()) == list(second.named_variables())


def test_shared_variables_and_modules_are_listed_once() -> None:
    net = Net()
    net.tied = net.encoder[0].kernel
    net.again = net.encoder
    assert [v.name for v in net.variables] == NAMES
    assert fv.Module.variables.fget(net)[0] is net.tied  # type: ignore[attr-defined]


def test_cycles_end() -> None:
    net = Net()
    net.itself = net
    net.encoder[0].parent = net
    net.ring = [net.encoder]
    net.ring.append(net.ring)
    assert list(net.named_variables()) == NAMES


def test_two_variables_of_one_name_are_an_error() -> None:
    net = Net()
    net.other = fv.Variable(2.0, name="encoder/0/bias")
    with pytest.raises(ValueError, match="Net: two variables are named 'encoder/0/bias'"):
        net.named_variables()


def test_freezing_a_part_is_one_assignment() -> None:
    net = Net()
    net.encoder[0].trainable = False
    assert [v.name for v in net.trainable_variables] == NAMES[2:-1]
    assert net.trainable
    assert not net.encoder[0].trainable
    net.trainable = False
    assert net.trainable_variables == []
    net.trainable = True
    assert net.non_trainable_variables == []
    with pytest.raises(TypeError, match="trainable must be True or False"):
        net.trainable = "yes"


def test_freezing_is_honoured_by_the_next_step() -> None:
    net = Net()
    optimizer = fv.optimizers.Adam(0.1)
    optimizer.build(net)
    grads = [np.ones(v.shape, v.dtype) for v in net.variables]
    optimizer.apply(grads)
    before = [v.numpy() for v in net.variables]
    net.encoder[0].trainable = False
    optimizer.apply(grads)
    changed = [bool((v.value != old).any()) for v, old in zip(net.variables, before, strict=True)]
    assert changed == [False, False, True, True, True, True, True, True, False]


def test_frozen_empty_module() -> None:
    empty = fv.Module()
    assert empty.variables == []
    assert not empty.trainable
    assert repr(empty) == "<Module: 0 variables, 0 parameters>"


def test_repr_counts_parameters() -> None:
    assert repr(Dense(100, 100)) == "<Dense: 2 variables, 10,100 parameters>"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_apart_and_keep_names_and_sharing(duplicate) -> None:
    net = Net()
    net.tied = net.encoder[0].kernel
    twin = duplicate(net)
    assert list(twin.named_variables()) == NAMES
    assert twin.tied is twin.encoder[0].kernel
    twin.variables[0].assign_add(np.ones((4, 3)))
    assert not net.variables[0].any()


def test_a_name_of_a_variable_takes_variables_only() -> None:
    net = Net()
    kernel, first = net.heads["left"].kernel, net.encoder[0]
    net.layers, net.table = [kernel, first], {"w": kernel, "n": 3}
    slips = {
        "scale": [net.scale - 0.1, 0.5, None, np.ones(3), [net.scale], Net()],
        "layers": [[kernel - 0.1, first], (kernel.value,)],
        "table": [{"n": 1, "w": kernel * 2}],
    }
    for name, values in slips.items():
        before = getattr(net, name)
        at = {"scale": "scale", "layers": r"layers\[0\]", "table": r"table\['w'\]"}[name]
        for value in values:
            with pytest.raises(TypeError, match=rf"Net: {at} holds a Variable.*`\.{at}\.assign\("):
                setattr(net, name, value)
            assert getattr(net, name) is before
    assert [v.name for v in net.variables] == NAMES


def test_what_is_meant_to_change_in_a_module_can_be_changed() -> None:
    net = Net()
    scale = net.scale
    net.scale -= 0.5  # in place
    assert net.scale is scale
    assert float(scale) == 0.5
    net.scale = fv.Variable(2.0)
    net.note = 3
    net.encoder = [*net.encoder, Dense(3, 3)]
    net.encoder = []
    net.heads = None
    del net.scale
    net.scale = 1.0
    assert net.variables == []
    net.ring = [net]
    net.ring.append(net.ring)
    net.ring = net.ring
