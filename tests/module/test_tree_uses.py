"""Trees in groups, exclusions, averages, copies and checkpoints."""

from __future__ import annotations

import copy
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from fastvar.module import walk
from tests.support.trees import NESTED, Layer, Net, Pair, assert_trained, distinct, variable

# Groups.


def grouped() -> tuple[list[fv.Variable], list[Any]]:
    a, b, c = variables = [variable() for _ in range(3)]
    return variables, [{"variables": {"x": b, "y": c}, "learning_rate": 2.0}, a]


def test_gradients_of_groups_have_the_same_structure() -> None:
    g = distinct(3)
    for grads in (
        [{"variables": {"y": g[2], "x": g[1]}}, g[0]],
        ({"y": g[2], "x": g[1]}, g[0]),
        {"1": g[0], 0: {"x": g[1], "y": g[2]}},
        {"0/x": g[1], "0/y": g[2], "1": g[0]},
    ):
        (a, b, c), groups = grouped()
        optimizer = fv.optimizers.SGD(1.0)
        optimizer.build(groups)
        optimizer.apply(grads)
        assert_trained([a, b, c], [g[0], 2 * g[1], 2 * g[2]])
        optimizer.apply({"p": g[0], "q": [g[1], g[2]]}, {"q": (b, c), "p": a})
        assert_trained([a, b, c], [2 * g[0], 4 * g[1], 4 * g[2]])
        with pytest.raises(ValueError, match="'0/x', '0/y', '1', as dicts have no order"):
            optimizer.apply(g)


def test_a_flat_sequence_is_in_the_order_of_what_build_was_given() -> None:
    (a, b, c), g = [variable() for _ in range(3)], distinct(3)
    for way in ("apply", "first", "step"):
        a[...] = b[...] = c[...] = 0
        optimizer = fv.optimizers.SGD(1.0)
        groups = [{"variables": [b, c], "learning_rate": 2.0}, a]
        if way == "first":
            optimizer.apply([g[1], g[2], g[0]], groups)
        else:
            optimizer.build(groups)
        if way == "apply":
            optimizer.apply([g[1], g[2], g[0]])
        if way == "step":
            a.grad, b.grad, c.grad = g
            optimizer.step()
        assert_trained([a, b, c], [g[0], 2 * g[1], 2 * g[2]])
    with pytest.raises(ValueError, match="got 2 gradients for 3 variables, '0/0', '0/1', '1'"):
        optimizer.apply(g[:2])


def test_a_dict_is_a_group_only_with_its_key_and_at_the_top() -> None:
    w, b = variable(), variable()
    optimizer = fv.optimizers.SGD()
    optimizer.build({"variables": {"w": w}, "learning_rate": 0.5})
    assert [group.learning_rate for group in optimizer.groups] == [0.5]
    optimizer = fv.optimizers.SGD()
    optimizer.build({"layer": {"variables": w, "params": b}})
    assert [v.name for v in optimizer._state.variables] == ["w", "layer/params"]
    optimizer = fv.optimizers.SGD()
    optimizer.build({"params": {"w": w}, "learning_rate": b})
    assert len(optimizer.groups) == 1
    with pytest.raises(TypeError, match=r"got float at '0/learning_rate' \(a group has the key 'variables'\)"):
        fv.optimizers.SGD().build([{"variable": [w], "learning_rate": 0.5}])


@pytest.mark.parametrize("key", ["params", "variables"])
def test_groups_of_torch(key: str) -> None:
    (a, b, c), g = [variable() for _ in range(3)], distinct(3)
    optimizer = fv.torch.SGD([{key: {"x": b, "y": c}, "lr": 2.0}, {key: a}], lr=1.0)
    optimizer.apply([{key: {"y": g[2], "x": g[1]}}, g[0]])
    assert_trained([a, b, c], [g[0], 2 * g[1], 2 * g[2]])
    for params in ({"x": a, "y": [b]}, Pair(a, b), Layer(a, b)):
        assert len(fv.torch.SGD(params).param_groups[0]["params"]) == 2


# Exclusions, averages and copies.


def test_exclusions_and_averages_take_trees() -> None:
    net = Net()
    optimizer = fv.optimizers.SGD(0.5, weight_decay=0.5, use_ema=True, ema_momentum=0.0)
    optimizer.build(net)
    for var_list in (net.encoder, {"x": net.encoder[0], "y": [net.encoder[1]]}, iter([net.encoder])):
        optimizer.exclude_from_weight_decay(var_list)
        assert [optimizer.decays(v) for v in net.variables] == [True, False, False, False, False]
    optimizer.exclude_from_weight_decay(net.scale)
    assert not optimizer.decays(net.scale)
    for bad in (["scale"], [np.zeros(2)]):
        with pytest.raises(TypeError, match=r"variables must be fastvar\.Variable, got"):
            optimizer.exclude_from_weight_decay(bad)
    optimizer.apply(NESTED)
    trained = net.scale.numpy()
    net.scale[...] = 5
    optimizer.finalize_variable_values({"s": net.scale})
    np.testing.assert_array_equal(net.scale, trained)


def test_names_of_paths_exclude() -> None:
    params = {"dense": {"bias": variable(), "kernel": variable()}}
    optimizer = fv.optimizers.SGD(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(params)
    assert [optimizer.decays(v) for v in optimizer._state.variables] == [False, True]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_go_on_by_path(duplicate: Any) -> None:
    params = {"b": variable(), "a": variable()}
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.build(params)
    params, optimizer = duplicate((params, optimizer))
    g = distinct(2)
    optimizer.apply({"a": g[1], "b": g[0]})
    assert_trained([params["b"], params["a"]], g)


# Checkpoints.


def test_checkpoints_name_variables_by_path(tmp_path: Path) -> None:
    def tree() -> dict[str, Any]:
        return {
            "net": Net(),
            "pair": Pair(variable(), [variable()]),
            "layer": Layer(variable(), None),
            3: variable(),
        }

    saved, restored = tree(), tree()
    names = ["pair/second", "pair/first/0", "layer/kernel", "3"]
    for k, (_, v) in enumerate(walk(saved)):
        v[...] = k
    optimizers = [fv.optimizers.Adam(), fv.optimizers.Adam()]
    optimizers[0].build(saved)
    for what, twin in ((saved, restored), (types.MappingProxyType(saved), types.MappingProxyType(restored))):
        path = fv.Checkpoint(what, optimizer=optimizers[0]).save(tmp_path / "root.h5", overwrite=True)
        assert {f"variables/{name}" for name in names} < {name for name, _ in fv.list_variables(path)}
        for _, v in walk(restored):
            v[...] = -1
        fv.Checkpoint(twin, optimizer=optimizers[1]).restore(path)
        assert [v[0] for _, v in walk(restored)] == [*range(9)]
    path = fv.Checkpoint(params=saved["layer"], more=saved["pair"]).save(tmp_path / "keywords.h5")
    assert [name for name, _ in fv.list_variables(path)] == [
        "variables/params/kernel",
        "variables/more/second",
        "variables/more/first/0",
    ]
    with pytest.raises(TypeError, match="x= must hold either variables"):
        fv.Checkpoint(x=Layer(variable(), np.zeros(2)))
    with pytest.raises(TypeError, match="root must be a Module or hold variables, got int"):
        fv.Checkpoint(3)
