"""Checkpoints converted to files that PyTorch's `load_state_dict` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import fastvar as fv
from fastvar.checkpoint import convert


def loaded(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file as a user of PyTorch reads them."""
    if str(path).endswith(".npz"):
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return safetensors.torch.load_file(path)


def network() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_variables_of_ours_load_into_a_module(suffix: str, tmp_path: Path) -> None:
    """Named by their paths, as users write them: layers in a list, each with weight and bias."""
    rng = np.random.default_rng(0)
    layers = [
        {"weight": fv.Variable(rng.normal(size=(m, n)).astype("f4")), "bias": fv.Variable(np.zeros(m, "f4"))}
        for n, m in [(3, 4), (4, 2)]
    ]
    optimizer = fv.optimizers.Adam(0.1)
    optimizer.apply(
        [np.ones(layer[key].shape) for layer in layers for key in layer],
        [layer[key] for layer in layers for key in layer],
    )
    path = fv.Checkpoint({"net": layers}, optimizer=optimizer, rng=rng).save(tmp_path / "a.h5")
    target = tmp_path / f"b.{suffix}"
    notes = convert(path, target, weights_only=True, names="torch")
    assert notes == [
        "the state of optimizers and other objects was left out",
        "all names begin with 'net'; prefix='net' leaves it out",
    ]
    assert sorted(loaded(target)) == ["net.0.bias", "net.0.weight", "net.1.bias", "net.1.weight"]
    convert(path, target, weights_only=True, names="torch", prefix="net", overwrite=True)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    module.load_state_dict(loaded(target))
    x = rng.normal(size=(5, 3)).astype("f4")
    expected = x
    for layer in layers:
        expected = expected @ layer["weight"].value.T + layer["bias"].value
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keyword", [None, "model"])
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_a_module_of_pytorch_comes_back(suffix: str, keyword: str | None, tmp_path: Path) -> None:
    module, other = network(), network()
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    given = {"optimizer": optimizer} if keyword is None else {"optimizer": optimizer, keyword: module}
    path = fv.Checkpoint(module if keyword is None else None, **given).save(tmp_path / "a.h5")
    convert(path, tmp_path / f"b.{suffix}", weights_only=True, names="torch", prefix=keyword)
    other.load_state_dict(loaded(tmp_path / f"b.{suffix}"))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_prefix_takes_one_of_several(tmp_path: Path) -> None:
    variables = {"a": {"w": fv.Variable([1.0])}, "ab": {"w": fv.Variable([2.0])}, "b.c": fv.Variable([3.0])}
    path = fv.Checkpoint(variables).save(tmp_path / "a.h5")
    convert(path, tmp_path / "a.npz", prefix="a")
    assert {name: array.tolist() for name, array in np.load(tmp_path / "a.npz").items()} == {"w": [1.0]}
    convert(path, tmp_path / "b.npz", prefix="b")
    assert np.load(tmp_path / "b.npz")["c"].tolist() == [3.0]
    with pytest.raises(ValueError, match=r"a\.h5: prefix must be that of a tensor \(a, ab, b\), got 'a/w'"):
        convert(path, tmp_path / "c.npz", prefix="a/w")
    with pytest.raises(ValueError, match="names must be fastvar or torch, got 'keras'"):
        convert(path, tmp_path / "c.npz", names="keras")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "a.npz", "b.npz"]


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    path = fv.Checkpoint({"a": {"b": fv.Variable([1.0])}, "a.b": fv.Variable([2.0])}).save(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"'variables/a\.b' and 'variables/a/b' would both be named 'a\.b'"):
        convert(path, tmp_path / "b.npz", names="torch")
    assert not (tmp_path / "b.npz").exists()
