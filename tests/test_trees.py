"""Trees of variables and gradients are matched by path, whatever holds them, and never by order."""

from __future__ import annotations

import collections
import copy
import dataclasses
import pickle
import random
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import contents
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvar as fv
import fastvar.torch
from fastvar.module import Tree, walk

SHAPE = (2,)  # of every variable: only its path tells one from another


def variable(**options: Any) -> fv.Variable:
    return fv.Variable(np.zeros(SHAPE), **options)


def distinct(count: int) -> list[Any]:
    return [np.array([k + 1.0, -k - 1.0]) for k in range(count)]


def assert_trained(variables: list[fv.Variable], gradients: list[Any]) -> None:
    """Check that one step of `SGD(1.0)` has given every variable its own gradient."""
    for v, g in zip(variables, gradients, strict=True):
        np.testing.assert_array_equal(v, 0 if g is None else -np.asarray(g))


class Pair(NamedTuple):
    second: Any
    first: Any


class Swapped(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any
    activation: str = "relu"
    sizes: tuple[int, ...] = (3, 4)


@dataclasses.dataclass
class Slotted(fv.Module):
    __slots__ = ("kernel",)
    kernel: Any


class Net(fv.Module):
    def __init__(self, make: Callable[[], Any] = variable) -> None:
        self.scale = make()
        self.encoder = [Layer(make(), make()), {"b": make(), "a": make()}]
        self.note = "no variable"
        self.table = np.zeros(3)


# The oracle is JAX.

KEYS = st.one_of(
    st.lists(st.text("ab/0.", min_size=1, max_size=2), unique=True, max_size=4),
    st.lists(st.integers(-2, 12), unique=True, max_size=4),
)


def branches(leaf: Any) -> Any:
    return st.one_of(
        st.lists(leaf, max_size=3),
        st.lists(leaf, max_size=3).map(tuple),
        st.builds(Pair, leaf, leaf),
        KEYS.flatmap(lambda keys: st.fixed_dictionaries(dict.fromkeys(keys, leaf))),
    )


TREES = branches(st.recursive(st.none() | st.just(0), branches, max_leaves=12))


def filled(tree: Any, make: Callable[[], Any]) -> Any:
    """Return a tree with something made for each 0 in it."""
    if isinstance(tree, Pair):
        return Pair(*(filled(child, make) for child in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(filled(child, make) for child in tree)
    if isinstance(tree, dict):
        return {key: filled(child, make) for key, child in tree.items()}
    return None if tree is None else make()


def shuffled(tree: Any, rng: random.Random) -> Any:
    """Return a tree of the same paths in another order."""
    if isinstance(tree, Pair):
        return Swapped(second=shuffled(tree.second, rng), first=shuffled(tree.first, rng))
    if isinstance(tree, (list, tuple)):
        return rng.choice([list, tuple])(shuffled(child, rng) for child in tree)
    if isinstance(tree, dict):
        children = [*tree.items()]
        rng.shuffle(children)
        ordered = rng.choice([dict, collections.OrderedDict, types.MappingProxyType])
        return ordered({key: shuffled(child, rng) for key, child in children})
    return tree


def by_path(tree: Any) -> dict[str, Any]:
    jax = pytest.importorskip("jax")
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@settings(max_examples=200, deadline=None)
@given(TREES, st.randoms(use_true_random=False), st.sampled_from(["build", "apply", "minimize", "pairs"]))
def test_every_variable_gets_the_gradient_of_its_path(tree: Any, rng: random.Random, way: str) -> None:
    params = filled(tree, variable)
    variables = by_path(params)
    values = iter(distinct(len(variables)))
    grads = filled(tree, lambda: next(values))
    expected = by_path(grads)
    if not variables:
        return
    optimizer, given_grads = fv.optimizers.SGD(1.0), shuffled(grads, rng)
    if way == "build":
        optimizer.build(params)
        optimizer.apply(given_grads)
    elif way == "apply":
        optimizer.build([v for _, v in sorted(variables.items())])
        optimizer.apply(given_grads, shuffled(params, rng))
    elif way == "minimize":
        assert optimizer.minimize(lambda: (0.5, given_grads), params) == 0.5
    else:
        assert optimizer.apply_gradients([(given_grads, params)]) == 1
    assert_trained([*variables.values()], [expected[path] for path in variables])


def test_gradients_of_jax_train_what_they_are_of() -> None:
    """JAX sorts the keys of dicts: by order, equal shapes would train one another."""
    jax = pytest.importorskip("jax")
    params = {
        "z": {"kernel": variable(), "bias": variable()},
        "a": Pair(variable(), variable()),
        "m": [variable()],
    }
    factors = dict(zip((path for path, _ in walk(params)), distinct(5), strict=True))

    def loss(values: Any) -> Any:
        flat = jax.tree_util.tree_flatten_with_path(values)[0]
        named = {
            "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", 0)))) for k in p): x
            for p, x in flat
        }
        return sum((factors[name] * x).sum() for name, x in named.items())

    grads = jax.grad(loss)(jax.tree.map(lambda v: v.value, params))
    assert [*grads] == ["a", "m", "z"]
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.apply(grads, params)
    assert_trained([v for _, v in walk(params)], [*factors.values()])
    with pytest.raises(
        ValueError, match="gradients must be given by their paths 'z/kernel', 'z/bias', 'a/second'"
    ):
        optimizer.apply(jax.tree.leaves(grads))
    optimizer.apply(jax.tree.leaves(grads), jax.tree.leaves(params))
    assert_trained([v for _, v in walk(params)], [2 * factor for factor in factors.values()])


# Whatever holds them.


def of_net(net: Net) -> dict[str, Any]:
    return dict(walk(net))


PATHS = ["scale", "encoder/0/kernel", "encoder/0/bias", "encoder/1/b", "encoder/1/a"]
G = dict(zip(PATHS, distinct(5), strict=True))
NESTED = {
    "encoder": (
        {"bias": G["encoder/0/bias"], "kernel": G["encoder/0/kernel"]},
        {"a": G[PATHS[4]], "b": G[PATHS[3]]},
    ),
    "scale": G["scale"],
}


def module_of_gradients() -> Net:
    values = iter(G.values())
    return Net(lambda: next(values))


@pytest.mark.parametrize(
    "grads",
    [
        NESTED,
        types.MappingProxyType(NESTED),
        module_of_gradients(),
        dict(reversed(G.items())),
        {"scale": G["scale"], **{path: g for path, g in reversed(G.items()) if path != "scale"}},
        {"encoder": {1: NESTED["encoder"][1], 0: Layer(G[PATHS[1]], G[PATHS[2]])}, "scale": G["scale"].tolist()},
        [*G.values()],
        np.stack([*G.values()]),
    ],
    ids=["nested", "mapping", "module", "paths", "mixed", "dataclass", "flat", "rows"],
)
@pytest.mark.parametrize("wrap", [lambda o: o, fv.optimizers.LossScaleOptimizer], ids=["plain", "scaled"])
def test_gradients_of_a_module(grads: Any, wrap: Any) -> None:
    net = Net()
    optimizer = wrap(fv.optimizers.SGD(1.0))
    factor = optimizer.scale_loss(1.0)
    optimizer.build(net)
    optimizer.apply(grads)
    assert [*of_net(net)] == PATHS
    for path, v in of_net(net).items():
        np.testing.assert_array_equal(v, -G[path] / factor)


def test_a_dataclass_holds_settings_too() -> None:
    params = {"b": Layer(variable(), variable()), "a": Layer(variable(), None)}
    optimizer = fv.optimizers.SGD(1.0)
    g = distinct(3)
    optimizer.apply({"a": Layer(g[2], None), "b": Layer(bias=g[1], kernel=g[0])}, params)
    assert_trained([v for _, v in walk(params)], g)
    assert [v.name for v in optimizer._state.variables] == ["b/kernel", "b/bias", "a/kernel"]
    with pytest.raises(TypeError, match=r"must be fastvar\.Variable, got ndarray at 'bias'"):
        fv.optimizers.SGD().build(Layer(variable(), np.zeros(2)))


def test_a_module_may_be_a_dataclass_with_slots() -> None:
    net = Slotted(variable())
    assert [*net.named_variables()] == ["kernel"]
    twin = copy.deepcopy(net)
    assert [*twin.named_variables()] == ["kernel"]


def test_scalars_and_lists_of_numbers_are_leaves() -> None:
    params = {"w": variable(), "s": fv.Variable(0.0)}
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.apply({"s": 0.5, "w": [3.0, 0.25]}, params)
    assert (params["s"].value, [*params["w"]]) == (-0.5, [-3.0, -0.25])
    w, b = variable(), variable()
    for variables in ([w, b], [[w], [b]], [{"variables": [w]}, {"variables": [b]}], [w, [b]]):
        w[...] = b[...] = 0
        fv.optimizers.SGD(1.0).apply([[3.0, 0.5], (1.0, 2)], variables)
        assert ([*w], [*b]) == ([-3.0, -0.5], [-1.0, -2.0])
    s, t = fv.Variable(0.0), fv.Variable(0.0)
    fv.optimizers.SGD(1.0).apply([[1.0], [2.0]], [[s], [t]])
    fv.optimizers.SGD(1.0).apply([1.0, 2.0], [[s], [t]])
    assert (s.value, t.value) == (-2, -4)


def test_none_in_a_list_of_variables_keeps_its_place() -> None:
    a, b, c = variables = [variable() for _ in range(3)]
    g = distinct(3)
    for params, grads, expected in (
        ([None, a], [None, g[0]], [g[0], None, None]),
        ([None, a], [g[0]], [g[0], None, None]),
        ([None, a, [b, c]], [None, g[0], None], [g[0], None, None]),
        ([None, a, [b, c]], [None, [3.0, 0.5], None], [[3.0, 0.5], None, None]),
        ([None, a, [b, c]], [None, [3.0, 0.5], [g[1], g[2]]], [[3.0, 0.5], g[1], g[2]]),
        ([None, a, [b, c]], [g[0], None, g[2]], [g[0], None, g[2]]),
        ([[a, b], [], c], [None, None, g[2]], [None, None, g[2]]),
        ([[a, b], None, [c]], [None, None, [g[2]]], [None, None, g[2]]),
    ):
        for v in variables:
            v[...] = 0
        fv.optimizers.SGD(1.0).apply(grads, params)
        assert_trained(variables, expected)


def test_rows_and_sparse_matrices_are_leaves() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    params = {name: fv.Variable(np.zeros((3, 2))) for name in "dcba"}
    rows = fv.IndexedSlices([[1.0, 2.0]], [1])
    dense = np.array([[0.0, 0.0], [1, 2], [0, 0]])
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.apply({"a": sparse.dok_array(dense), "b": rows, "c": sparse.coo_matrix(dense), "d": dense}, params)
    for v in params.values():
        np.testing.assert_array_equal(v, -dense)
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.build([[params["a"]], [params["b"]]])
    optimizer.apply([sparse.dok_array(dense), rows])
    np.testing.assert_array_equal(params["a"], -2 * dense)


def test_none_stands_for_a_whole_branch() -> None:
    net, g = Net(), distinct(5)
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.build(net)
    optimizer.apply({"scale": g[0], "encoder": None})
    assert_trained([*of_net(net).values()], [g[0], None, None, None, None])
    optimizer.apply({"encoder": [None, {"a": g[4], "b": None}], "scale": None})
    assert_trained([*of_net(net).values()], [g[0], None, None, None, g[4]])
    with pytest.raises(ValueError, match="no variable has a gradient"):
        optimizer.apply({"encoder": None, "scale": None})


def test_frozen_variables_stay_and_counters_need_no_gradient() -> None:
    net = Net()
    net.count = fv.Variable(7, trainable=False)
    net.encoder[0].bias.trainable = False
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.build(net)
    for grads in (NESTED, {**NESTED, "count": 1}, {**NESTED, "count": np.ones(3)}, [*G.values()]):
        for v in net.trainable_variables:
            v[...] = 0
        optimizer.apply(grads)
        expected = {**G, "encoder/0/bias": None}
        assert_trained([of_net(net)[path] for path in PATHS], [expected[path] for path in PATHS])
    assert net.count.value == 7
    with pytest.raises(TypeError, match="'count' must be float32 or float64"):
        fv.optimizers.SGD().build({"count": net.count})


def test_shared_variables() -> None:
    """A module lists one once, under its first path; elsewhere, two gradients would be meant for it."""
    net, g = Net(), distinct(2)
    net.tied, net.again, net.itself = net.scale, net.encoder, net
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.build(net)
    for grads in (
        {"encoder": None, "scale": g[0]},
        {"encoder": None, "tied": g[0]},
        {"again": None, "scale": g[0]},
        {"encoder": None, "again": None, "tied": g[0], "scale": None, "itself": g[1]},
    ):
        net.scale[...] = 0
        optimizer.apply(grads)
        assert_trained([net.scale], [g[0]])
    with pytest.raises(ValueError, match="given twice 'tied'"):
        optimizer.apply({"encoder": None, "scale": g[0], "tied": g[1]})
    w = variable(name="w")
    for params, paths in (
        ({"a": w, "b": [w]}, "'a' and 'b/0'"),
        ([net, {"x": net.scale}], "'0/scale' and '1/x'"),
        ([{"variables": {"a": w}}, {"b": w}], "'0/a' and '1/b'"),
        ({"a": (layer := {"k": w}), "b": layer}, "'a' and 'b'"),
    ):
        optimizer = fv.optimizers.SGD()
        with pytest.raises(ValueError, match=f"comes twice, at {paths}"):
            optimizer.build(params)
        assert optimizer._state.variables == []


def test_cycles_end() -> None:
    params: dict[str, Any] = {"w": variable()}
    params["self"], params["list"] = params, [params]
    assert [path for path, _ in walk(params)] == ["w"]
    grads: dict[str, Any] = {"w": distinct(1)[0], "list": None}
    grads["self"] = grads
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.apply(grads, params)
    assert_trained([params["w"]], distinct(1))


def test_keys_of_any_kind() -> None:
    params = {1: variable(), 0: variable(), "a/b": variable(), "a": {"b": variable(), "": variable()}}
    g = distinct(5)
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.apply({"a": {"": g[4], "b": g[3]}, "a/b": g[2], 0: g[1], "1": g[0]}, params)
    assert_trained([v for _, v in walk(params)], g)
    with pytest.raises(ValueError, match="unknown 'x/a/b'; missing 'x/a/b', 'x/a/b'"):  # two have that path
        fv.optimizers.SGD(1.0).apply({"x/a/b": g[0]}, {"x": {"a/b": variable(), "a": {"b": variable()}}})


def test_names_find_variables_that_stand_in_a_list() -> None:
    net, g = Net(), distinct(5)
    optimizer = fv.optimizers.SGD(1.0)
    optimizer.build(net.variables)
    optimizer.apply(dict(reversed(G.items())))
    assert_trained(net.variables, [*G.values()])
    w, b = variable(name="w"), variable(name="b")
    fv.optimizers.SGD(1.0).apply({"b": g[1], "w": g[0]}, [w, b])
    assert_trained([w, b], g[:2])
    fv.optimizers.SGD(1.0).apply({"x": g[0], "w": g[2]}, {"w": b, "x": w})  # a path goes before a name
    assert_trained([w, b], [2 * g[0], g[1] + g[2]])


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


# What does not match is an error that names paths, and changes nothing.

BAD: dict[str, tuple[Any, str]] = {
    "missing": ({"scale": 1, "encoder": [{"kernel": 1}, None]}, "missing 'encoder/0/bias'"),
    "missing branch": ({"scale": 1}, "missing 'encoder/0/kernel', 'encoder/0/bias', 'encoder/1/b', 'encoder/1/a'"),
    "slip": ({**NESTED, "scales": 1}, "unknown 'scales'"),
    "slip below": (
        {"scale": 1, "encoder": [{"kernal": 1, "bias": 1}, None]},
        "unknown 'encoder/0/kernal'; missing",
    ),
    "too long": ({"scale": 1, "encoder": [None, None, None]}, "unknown 'encoder/2'"),
    "leaf for a branch": ({"scale": 1, "encoder": [np.ones(2), None]}, r"unknown 'encoder/0' \(ndarray\)"),
    "flat, too few": ([1, 2], "got 2 gradients for 5 variables"),
    "twice": ({**NESTED, "encoder/0/bias": np.ones(2)}, "given twice 'encoder/0/bias'"),
    "empty": ({}, "missing 'scale'"),
    "namedtuple": (Pair(1, 2), "unknown 'second', 'first'"),
}


@pytest.mark.parametrize("row", BAD)
@pytest.mark.parametrize("built", [True, False], ids=["built", "first"])
def test_a_mismatch_names_paths_and_changes_nothing(row: str, built: bool) -> None:
    grads, pattern = BAD[row]
    net, optimizer = Net(), fv.optimizers.Adam()
    if built:
        optimizer.build(net)
        optimizer.apply(NESTED)
    before = contents(optimizer, net.variables)
    with pytest.raises(ValueError, match=f"Adam: .*{pattern}"):
        optimizer.apply(grads, net)
    assert contents(optimizer, net.variables) == before
    optimizer.apply(NESTED, net)


def test_long_lists_of_paths_are_short() -> None:
    with pytest.raises(ValueError, match=r"missing '0', '1', '2', '3', '4' and 995 more$"):
        fv.optimizers.SGD().apply({}, {str(i): variable() for i in range(1000)})


# A first step that fails leaves the optimizer unbuilt.


def fail_in_apply(optimizer: Any, v: fv.Variable, grads: Any) -> None:
    optimizer.apply(grads, {"v": v})


def fail_in_pairs(optimizer: Any, v: fv.Variable, grads: Any) -> None:
    optimizer.apply_gradients([(grads, {"v": v})])


def fail_in_minimize(optimizer: Any, v: fv.Variable, grads: Any) -> None:
    optimizer.minimize(lambda: (1.0, grads), {"v": v})


@pytest.mark.parametrize("fail", [fail_in_apply, fail_in_pairs, fail_in_minimize])
@pytest.mark.parametrize(
    "make",
    [
        fv.optimizers.Adam,
        fv.torch.Adam,
        lambda: fv.optimizers.LossScaleOptimizer(fv.optimizers.Adam()),
        lambda: fv.optimizers.Adam(gradient_accumulation_steps=2, use_ema=True),
        lambda: fv.optimizers.Adam(nonfinite="raise"),
        fv.optimizers.LBFGS,
    ],
    ids=["Adam", "torch", "scaled", "accumulating", "raising", "LBFGS"],
)
@pytest.mark.parametrize(
    "grads", [{"v": np.ones(3)}, {"w": np.ones(2)}, {"v": None}, {"v": "x"}, {"v": 1.0}], ids=range(5)
)
def test_a_first_step_that_fails_leaves_it_unbuilt(make: Any, fail: Any, grads: Any) -> None:
    optimizer = make()
    if isinstance(optimizer, fv.optimizers.LBFGS) and (fail is not fail_in_minimize or grads.get("v", 0) is None):
        return
    for _ in range(2):
        with pytest.raises((ValueError, TypeError)):
            fail(optimizer, variable(), grads)
        assert (optimizer._state.variables, optimizer.variables, optimizer.groups) == ([], [], [])
    other = variable()
    optimizer.minimize(lambda: (float((other**2).sum()), {"v": 2 * other.value + 0.5}), {"v": other})
    assert optimizer._state.variables[0] is other


def test_a_first_step_that_fails_leaves_no_numbers_of_its_groups(tmp_path: Path) -> None:
    v, w = variable(name="v"), variable(name="w")
    optimizer, fresh = fv.torch.NAdam(), fv.torch.NAdam([w])  # each group carries a product on
    with pytest.raises(ValueError, match=r"gradient of 'v': must have shape \(2,\)"):
        optimizer.apply([np.ones(3), np.ones(2)], [{"params": v}, {"params": w}])
    optimizer.apply([np.ones(2)], [w])
    path = fv.Checkpoint(w=w, optimizer=optimizer).save(tmp_path / "a.h5")
    fv.Checkpoint(w=w, optimizer=fresh).restore(path)
    assert contents(fresh, [w]) == contents(optimizer, [w])


# What else takes variables.


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


def test_files_and_sparse_matrices_are_no_trees() -> None:
    class Lazy(collections.UserDict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise AssertionError("must not be read")

        def close(self) -> None: ...

    net = Net()
    net.data = Lazy(x=1)
    assert [*of_net(net)] == PATHS
    assert Tree([]).variables == []
