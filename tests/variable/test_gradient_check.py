"""check_gradients finds wrong gradients of several kinds, names the element, and leaves everything as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import assert_same_bits

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 6)).astype(np.float32)
LABELS = RNG.integers(0, 3, 20)


class Network:
    """A layer with tanh and one with softmax, and their gradients."""

    def __init__(self, dtype: str = "float32", hidden: int = 8) -> None:
        rng = np.random.default_rng(1)
        shapes = {"kernel": (6, hidden), "bias": (hidden,), "head": (hidden, 3), "scale": ()}
        self.variables = {n: fv.Variable(rng.normal(size=s), dtype=dtype) for n, s in shapes.items()}
        self.calls = 0

    def __call__(self) -> tuple[Any, dict[str, Any]]:
        self.calls += 1
        w = {name: v.value for name, v in self.variables.items()}
        h = np.tanh(X @ w["kernel"] + w["bias"])
        logits = w["scale"] * (h @ w["head"])
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[np.arange(20), LABELS]).mean()
        p[np.arange(20), LABELS] -= 1
        d = p / 20
        back = w["scale"] * (d @ w["head"].T) * (1 - h**2)
        grads = {"kernel": X.T @ back, "bias": back.sum(axis=0), "head": w["scale"] * (h.T @ d)}
        return loss, grads | {"scale": (d * (h @ w["head"])).sum()}


def spoilt(network: Network, name: str, index: Any, change: float) -> Any:
    def value_and_grad() -> Any:
        loss, grads = network()
        grads[name] = np.array(grads[name])
        grads[name][index] += change
        return loss, grads

    return value_and_grad


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [8, 300])
def test_right_gradients_pass(dtype: str, hidden: int) -> None:
    network = Network(dtype, hidden)
    found = fv.check_gradients(network, network.variables)
    assert found.loss == pytest.approx(network()[0], rel=1e-5)
    counts = {name: min(v.size, 100) + (v.size > 100) for name, v in network.variables.items()}
    assert len(found.derivatives) == sum(counts.values())
    assert found.worst.excess == max(d.excess for d in found.derivatives) <= 1
    assert found.worst.excess < 0.1  # the tolerances have room
    assert repr(found).startswith(f"GradientCheck: {len(found.derivatives):,} derivatives agree, loss ")
    assert repr(found).splitlines()[3].startswith(found.worst.where)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "index"), [("kernel", (4, 2)), ("bias", (5,)), ("head", (7, 0)), ("scale", ())])
@pytest.mark.parametrize("change", [1e-4, -1.0, np.nan, np.inf])
def test_one_wrong_element_is_named(dtype: str, name: str, index: Any, change: float) -> None:
    network = Network(dtype)
    with pytest.raises(AssertionError) as raised:
        fv.check_gradients(spoilt(network, name, index, change), network.variables)
    first, second, *rest = str(raised.value).splitlines()
    assert first == "check_gradients: 1 of 81 derivatives is wrong; the worst:"
    assert second.startswith(f"  {name}{[*index] if index else ''}: ")
    assert not rest


@pytest.mark.parametrize("index", [(0, 0), (5, 299), (3, 150)])
def test_a_wrong_element_of_a_large_variable_is_found_by_bisection(index: tuple[int, int]) -> None:
    network = Network(hidden=300)
    with pytest.raises(AssertionError, match=rf"(?m)^  kernel\[{index[0]}, {index[1]}\]: "):
        fv.check_gradients(spoilt(network, "kernel", index, 0.1), network.variables, max_elements=5)
    assert network.calls < 150


@pytest.mark.parametrize("wrong", ["factor", "transposed", "missing", "sign"])
def test_kinds_of_mistakes(wrong: str) -> None:
    w = fv.Variable(np.random.default_rng(2).normal(size=(4, 4)), name="w")
    right = {"factor": 1.0, "transposed": w.value.T, "missing": None, "sign": -2 * w.value}[wrong]
    gradient = w.numpy() if wrong == "factor" else right
    with pytest.raises(AssertionError, match=r"check_gradients: \d+ of 16 derivatives (is|are) wrong"):
        fv.check_gradients(lambda: ((w**2).sum(), [gradient]), [w])


def test_the_worst_element_comes_first() -> None:
    w = fv.Variable(np.ones(9), name="w")
    gradient = 2 * np.ones(9) + np.arange(9)
    with pytest.raises(AssertionError) as raised:
        fv.check_gradients(lambda: ((w**2).sum(), [gradient]), [w])
    assert str(raised.value).splitlines() == [
        "check_gradients: 8 of 9 derivatives are wrong; the worst:",
        *(f"  w[{k}]: {2 + k}, by differences 2" for k in (8, 7, 6, 5, 4)),
    ]


@pytest.mark.parametrize("fails_at", [None, 1, 2, 3, 30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_is_as_it_was(fails_at: int | None, dtype: str) -> None:
    network = Network(dtype)
    frozen = fv.Variable(1.0, trainable=False)
    gradients = {name: np.ones(v.shape, dtype) for name, v in network.variables.items()}
    for name, v in network.variables.items():
        v.grad = gradients[name]
    held = {name: v.value for name, v in network.variables.items()}
    before = {name: v.numpy() for name, v in network.variables.items()}

    def value_and_grad() -> Any:
        loss, grads = network()
        frozen.assign_add(1.0)  # as moving statistics do
        for name, v in network.variables.items():
            v.grad = grads[name]
        if network.calls == fails_at:
            raise KeyboardInterrupt
        return loss, grads | {"frozen": None}

    tree = network.variables | {"frozen": frozen}
    if fails_at:
        with pytest.raises(KeyboardInterrupt):
            fv.check_gradients(value_and_grad, tree)
    else:
        fv.check_gradients(value_and_grad, tree)
    for name, v in network.variables.items():
        assert v.dtype == dtype
        assert np.shares_memory(v.value, held[name])
        assert_same_bits(v.value, before[name])
        assert v.grad is gradients[name]
    assert frozen.value == 1


def test_a_check_changes_no_step() -> None:
    first, second = Network(), Network()
    optimizers = [fv.optimizers.Adam(0.1), fv.optimizers.Adam(0.1)]
    for t in range(4):
        for network, optimizer in zip((first, second), optimizers, strict=True):
            optimizer.minimize(network, network.variables)
        if t == 1:
            fv.check_gradients(first, first.variables)
    for v, twin in zip(first.variables.values(), second.variables.values(), strict=True):
        assert_same_bits(v.value, twin.value)


def test_a_program_that_rounds_to_float32_is_compared_less_sharply() -> None:
    w = fv.Variable(np.linspace(-2, 2, 5), dtype=np.float32, name="w")

    def value_and_grad(factor: float = 1.0) -> Any:
        x = w.value.astype(np.float32)
        return (x**3).sum(), [factor * 3 * x**2]

    assert fv.check_gradients(value_and_grad, [w]).worst.excess < 0.5
    with pytest.raises(AssertionError, match="w"):
        fv.check_gradients(lambda: value_and_grad(1.05), [w])


def test_sparse_gradients_modules_and_single_variables() -> None:
    table = fv.Variable(np.arange(12.0).reshape(6, 2), name="table")

    def loss() -> Any:
        return (table[[1, 4, 1]] ** 2).sum()

    rows = fv.IndexedSlices(values=2 * table.value[[1, 4, 1]], indices=[1, 4, 1])
    fv.check_gradients(lambda: (loss(), [rows]), [table])
    fv.check_gradients(lambda: (loss(), rows), table)

    class Net(fv.Module):
        def __init__(self) -> None:
            self.layers = [fv.Variable([1.0, 2.0])]

    net = Net()
    with pytest.raises(AssertionError, match=r"layers/0\[1\]: 5, by differences 4"):
        fv.check_gradients(lambda: ((net.layers[0] ** 2).sum(), {"layers": [np.array([2.0, 5.0])]}), net)


def test_tolerances_can_be_set() -> None:
    w = fv.Variable([1.0], name="w")

    def value_and_grad() -> Any:
        return (w**2).sum(), [np.array([2.02])]

    fv.check_gradients(value_and_grad, [w], rtol=0.02)
    fv.check_gradients(value_and_grad, [w], atol=0.05)
    with pytest.raises(AssertionError):
        fv.check_gradients(value_and_grad, [w], rtol=0.005)
    fv.check_gradients(lambda: (w.sum() * 0 + 3.0, [np.zeros(1)]), [w], rtol=0, atol=0)


def test_what_cannot_be_checked_is_refused() -> None:
    w = fv.Variable([1.0], name="w")
    rng = np.random.default_rng(0)
    copy = w.value
    with pytest.raises(ValueError, match=r"^check_gradients: the loss must be the same in every call, got "):
        fv.check_gradients(lambda: (rng.random(), [np.ones(1)]), [w])
    with pytest.raises(ValueError, match=r"^check_gradients: the loss must be finite, got nan$"):
        fv.check_gradients(lambda: (np.nan, [np.ones(1)]), [w])
    with pytest.raises(ValueError, match=r"^check_gradients: gradient of .*'w'.*shape"):
        fv.check_gradients(lambda: (1.0, [np.ones(2)]), [w])
    with pytest.raises(ValueError, match=r"^check_gradients: got 2 gradients for 1 variable"):
        fv.check_gradients(lambda: (1.0, [np.ones(1), np.ones(1)]), [w])
    with pytest.raises(TypeError, match=r"^check_gradients: .*'n'.* must be float32 or float64$"):
        fv.check_gradients(lambda: (1.0, [None]), [fv.Variable(1, name="n")])
    with pytest.raises(ValueError, match=r"^check_gradients: there are no trainable variables$"):
        fv.check_gradients(lambda: (1.0, []), [])
    with pytest.raises(AssertionError, match="does it read their values anew in every call"):
        fv.check_gradients(lambda: ((copy**2).sum(), [2 * copy]), [w])
    np.testing.assert_array_equal(w, [1.0])
