"""Checkpoints of PyTorch's modules: tensors of any dtype and layout, and their names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import fastvar as fv
import fastvar.torch.optim as ours
from fastvar.checkpoint.reader import File
from tests.support.torch_training import X, everything, module, started, train

DTYPES = ["bool", "uint8", "int16", "int64", "uint16", "float16", "bfloat16", "float64", "complex64"]
DTYPES += ["float8_e4m3fn", "float8_e5m2"]


class Buffers(nn.Module):
    """A buffer for each dtype, and of odd layouts."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        for name in DTYPES:
            of = torch.full((2, 3), fill).to(getattr(torch, name))
            self.register_buffer(f"of {name}", of)
        self.register_buffer("scalar", torch.tensor(fill, dtype=torch.bfloat16))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("large", torch.full((300, 300), fill))
        self.register_buffer("transposed", (fill + torch.arange(120_000.0)).reshape(300, 400).t())
        self.register_buffer("strided", (fill + torch.arange(12.0))[::2])
        self.register_buffer("conjugate", torch.complex(torch.tensor([fill]), torch.tensor([1.0])).conj())
        self.register_buffer("negative", torch._neg_view(torch.tensor([fill])))
        self.register_buffer("not kept", torch.full((2,), fill), persistent=False)


def test_tensors_of_any_dtype_and_layout_come_back(tmp_path: Path) -> None:
    one, two = Buffers(3.0), Buffers(1.0)
    assert everything(one) != everything(two)
    path = fv.Checkpoint(one).save(tmp_path / "a.h5")
    pointers = [x.data_ptr() for x in two.buffers()]
    fv.Checkpoint(two).restore(path)
    assert everything(one) == everything(two)
    assert [x.data_ptr() for x in two.buffers()] == pointers
    assert two.transposed.stride() == (1, 400)
    assert getattr(two, "not kept")[0] == 1
    with File(path) as file:
        assert [file.entries[f"variables/of {name}"].dtype.name for name in DTYPES] == DTYPES


def test_tied_parameters_are_stored_once(tmp_path: Path) -> None:
    def tied() -> Any:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        net[1].weight = net[0].weight
        net[2].weight.data = net[0].weight.data
        return net

    one, two = tied(), tied()
    path = fv.Checkpoint(one).save(tmp_path / "a.h5")
    with File(path) as file:
        assert [*file.entries] == [f"variables/{name}" for name in ("0.weight", "0.bias", "1.bias", "2.bias")]
    fv.Checkpoint(two).restore(path)
    assert everything(one) == everything(two)
    assert two[1].weight is two[0].weight
    with pytest.raises(ValueError, match=r"missing in the file: variables/1\.weight"):
        fv.Checkpoint(nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))).restore(path)


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"more": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def quantized() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)


def holding(buffer: Any) -> Any:
    net = nn.Module()
    net.register_buffer("odd", buffer)
    return net


REFUSED: dict[str, Callable[[], Any]] = {
    "meta": lambda: nn.Linear(2, 2, device="meta"),
    "lazy": lambda: nn.LazyLinear(2),
    "sparse": lambda: holding(torch.eye(3).to_sparse()),
    "quantized": lambda: holding(quantized()),
    "subclass": lambda: holding(torch.ones(2).as_subclass(type("Subclass", (torch.Tensor,), {}))),
    "complex32": lambda: holding(torch.ones(2, dtype=torch.complex32)),
    "extra state": lambda: Extra(2, 2),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_that_cannot_be_stored_are_named(kind: str) -> None:
    with pytest.raises(TypeError, match=r"^Checkpoint: (net/weight|net/odd|net/_extra_state) must be .*"):
        fv.Checkpoint(net=REFUSED[kind]())


def test_restores_are_seen_by_autograd(tmp_path: Path) -> None:
    net, other = module(), module()
    path = fv.Checkpoint(net).save(tmp_path / "a.h5")
    loss = other(X).square().mean()
    fv.Checkpoint(other).restore(path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_weights_are_imported_from_safetensors(tmp_path: Path) -> None:
    net, other = module(), module()
    train(net, ours.SGD(net.parameters(), lr=0.5), 1)
    state = {name: x.contiguous() for name, x in net.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    fv.Checkpoint(other).import_weights(tmp_path / "a.safetensors")
    assert everything(other) == everything(net)


def test_names_must_differ() -> None:
    net, optimizer = started()
    for objects in ({"variables": fv.Variable([1.0], name="weight")}, {"weight": fv.Variable([1.0])}):
        with pytest.raises(ValueError, match="two variables are named 'weight'"):
            fv.Checkpoint(nn.Linear(2, 2), **objects)
    bias = nn.Module()
    bias.register_buffer("bias", torch.ones(2))
    with pytest.raises(ValueError, match="two tensors are named 'a/bias'"):
        fv.Checkpoint({"a": {"bias": fv.Variable([1.0])}}, a=bias)
    with pytest.raises(ValueError, match="an optimizer cannot be given as variables="):
        fv.Checkpoint(net, variables=optimizer)
