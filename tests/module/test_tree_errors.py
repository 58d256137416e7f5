"""Gradients that do not match the variables are an error that names paths, and nothing changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.torch
from tests.support.cases import contents
from tests.support.trees import NESTED, Net, Pair, variable

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


@pytest.mark.parametrize("built", [True, False], ids=["built", "first"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_one_array_is_no_list_of_gradients(built: bool, shape: tuple[int, ...]) -> None:
    variables, optimizer = [fv.Variable(np.zeros(shape))], fv.optimizers.Adam()
    if built:
        optimizer.build(variables)
    message = f"Adam: gradients must be a list of arrays, got one array of shape {shape}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        optimizer.apply(np.ones(shape), variables)


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


@pytest.mark.parametrize("missing", ["mean", "kernel"])
def test_a_missing_gradient_of_what_is_not_trained(missing: str) -> None:
    """It may be None, or be left out with its variable."""

    class Normalised(fv.Module):
        def __init__(self) -> None:
            self.kernel, self.mean = fv.Variable(np.ones(2)), fv.Variable(np.ones(2), trainable=False)

    net, gradients = Normalised(), {"kernel": np.ones(2), "mean": None}
    del gradients[missing]
    with pytest.raises(ValueError, match=f"missing '{missing}'") as error:
        fv.optimizers.SGD().apply(gradients, net)
    hint = "; these are not trained: give None, or pass `trainable_variables` of the module"
    assert str(error.value).endswith(hint) == (missing == "mean")
    fv.optimizers.SGD(0.5).apply({"kernel": np.ones(2)}, net.trainable_variables)
    fv.optimizers.SGD(0.5).apply({"kernel": np.ones(2), "mean": None}, net)
    assert (net.kernel.value == 0).all()


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
    optimizer, fresh = fv.torch.NAdam(), fv.torch.NAdam([w])  # each group keeps a product from step to step
    with pytest.raises(ValueError, match=r"gradient of 'v': must have shape \(2,\)"):
        optimizer.apply([np.ones(3), np.ones(2)], [{"params": v}, {"params": w}])
    optimizer.apply([np.ones(2)], [w])
    path = fv.Checkpoint(w=w, optimizer=optimizer).save(tmp_path / "a.h5")
    fv.Checkpoint(w=w, optimizer=fresh).restore(path)
    assert contents(fresh, [w]) == contents(optimizer, [w])
