"""Trees of variables and gradients are matched by path, never by order, in containers of any kind."""

from __future__ import annotations

import collections
import copy
import dataclasses
import random
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvar as fv
import fastvar.torch
from fastvar.module import Tree, walk
from tests.support.trees import NESTED, PATHS, G, Layer, Net, Pair, assert_trained, distinct, of_net, variable


class Swapped(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Slotted(fv.Module):
    __slots__ = ("kernel",)
    kernel: Any


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
    """Return a tree in which each 0 is replaced by a call of `make`."""
    if isinstance(tree, Pair):
        return Pair(*(filled(child, make) for child in tree))
    if isinstance(tree, (list, tuple)):
        return type(tree)(filled(child, make) for child in tree)
    if isinstance(tree, dict):
        return {key: filled(child, make) for key, child in tree.items()}
    return None if tree is None else make()


def shuffled(tree: Any, rng: random.Random) -> Any:
    """Return a tree with the same paths in another order."""
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
    """JAX sorts the keys of dicts: by order, a variable would get the gradient of another with its shape."""
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


# Containers of any kind.


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
    with pytest.raises(TypeError, match="'count' must be float32, float64, bfloat16 or float16"):
        fv.optimizers.SGD().build({"count": net.count})


def test_shared_variables() -> None:
    """A module lists a shared variable once, under its first path. Elsewhere it would have two gradients."""
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
    with pytest.raises(
        ValueError, match="unknown 'x/a/b'; missing 'x/a/b', 'x/a/b'"
    ):  # two variables have that path
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


def test_files_and_sparse_matrices_are_no_trees() -> None:
    class Lazy(collections.UserDict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise AssertionError("must not be read")

        def close(self) -> None: ...

    net = Net()
    net.data = Lazy(x=1)
    assert [*of_net(net)] == PATHS
    assert Tree([]).variables == []
