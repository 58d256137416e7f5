"""What `explain` says of an optimizer is what its next step does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from fastvar import kernels
from tests.support.torch_tensors import NAMES, bytes_of, give_gradients, parameters

EVERY = [*NAMES, *ours.native.__all__]
every_class = pytest.mark.parametrize("name", EVERY)


@every_class
def test_steps_and_elements_are_counted(name: str) -> None:
    params = parameters()
    optimizer = getattr(ours, name)(params, nonfinite="skip", ema=0.5)
    begun = name == "Adagrad"  # PyTorch makes its state at once
    fresh = ours.explain(optimizer)
    wanted = (0, 5, 5, 51) if begun else (0, 5, 0, 0)
    assert (fresh.kernel_steps, fresh.parameters, fresh.updated, fresh.elements) == wanted
    for t in range(3):
        give_gradients(params, t, missing=[0])
        if t == 1:
            params[1].grad[0] = torch.nan
        optimizer.step()
    before = bytes_of(optimizer, params)
    found = ours.explain(optimizer)
    assert bytes_of(optimizer, params) == before
    assert (found.name, found.kernel_steps, found.skipped) == (name, 2, 1)
    assert (found.parameters, found.updated, found.elements) == ((5, 5, 51) if begun else (5, 4, 30))
    assert (found.instruction_set, found.threads) == (kernels.isa, 1)
    assert found.keywords == {"nonfinite": "skip", "ema": 0.5}
    assert found.copied == {}
    assert found.refused == []
    optimizer.step()
    assert optimizer.kernel_steps == 3


@every_class
def test_copied_gradients_are_named_before_and_after_a_step(name: str) -> None:
    params = parameters(shapes=[(3, 4), (4, 3), (5,)])
    optimizer = getattr(ours, name)(params)
    give_gradients(params, 0)
    params[0].grad = torch.ones(4, 3).t()
    params[2].grad = torch._neg_view(torch.ones(5))
    reasons = {
        "parameter 0": "its strides are (1, 3), those of the parameter (4, 1)",
        "parameter 2": "it is a view of other numbers",
    }
    assert ours.explain(optimizer).copied == reasons
    optimizer.step()
    for p in params:
        p.grad = None
    assert ours.explain(optimizer).copied == reasons


FOR_SPARSE = "; SGD, Adagrad and SparseAdam take sparse gradients"


@every_class
def test_all_that_is_refused_is_listed(name: str) -> None:
    dtypes = [torch.bfloat16, torch.complex64, torch.complex128]
    net = torch.nn.Sequential(*(torch.nn.Linear(2, 2, dtype=dtype) for dtype in dtypes))
    optimizer = getattr(ours, name)(net.named_parameters())
    give_gradients([*net.parameters()], 0)
    net[0].bias.grad = torch.ones(2, dtype=torch.bfloat16).to_sparse()
    refused = ours.explain(optimizer).refused
    instead = f"; use torch.optim.{name}" if hasattr(torch.optim, name) else ""
    tensor = (
        f"{name}: {{}} must be a dense float32, float64, bfloat16 or float16 tensor on the CPU, "
        "got torch.{}, torch.strided on cpu"
    )
    sparse = (
        f"{name}: gradient of 0.bias must be a dense tensor on the CPU, got torch.bfloat16, "
        f"torch.sparse_coo on cpu (Tensor){FOR_SPARSE}"
    )
    assert refused == [
        *([] if name in ("SGD", "Adagrad") else [sparse]),
        *(tensor.format(f"1.{p}", "complex64") + f" (Parameter){instead}" for p in ("weight", "bias")),
        *(tensor.format(f"2.{p}", "complex128") + f" (Parameter){instead}" for p in ("weight", "bias")),
    ]
    before = bytes_of(optimizer, [*net.parameters()])
    with pytest.raises(TypeError) as error:
        optimizer.step()
    assert str(error.value) in refused
    assert bytes_of(optimizer, [*net.parameters()]) == before


def shared(params: list[Any]) -> Any:
    params[1].data = params[0].data.reshape(-1)[:5]
    return ours.Adam(params)


def aliased(params: list[Any]) -> Any:
    params[1].grad = params[1].detach()
    return ours.Adam(params)


def averaged(params: list[Any]) -> Any:
    optimizer = ours.Adam(params, ema=0.5)
    optimizer.block = optimizer.average_parameters()
    optimizer.block.__enter__()
    return optimizer


REFUSED: dict[str, tuple[Any, str]] = {
    "flag": (lambda params: ours.Adam(params, capturable=True), "Adam: capturable must be False here"),
    "number": (lambda params: worse(ours.Lion(params)), "Lion: lr must be >= 0, got -1.0"),
    "shared": (shared, "must not share memory"),
    "aliased": (aliased, "Adam: gradient of parameter 1: must not share memory with Adam: parameter 1"),
    "averaged": (averaged, "Adam: the parameters hold their averages"),
}


def worse(optimizer: Any) -> Any:
    optimizer.param_groups[0]["lr"] = -1.0
    return optimizer


@pytest.mark.parametrize("kind", REFUSED)
def test_what_stops_a_whole_step_is_said(kind: str) -> None:
    make, message = REFUSED[kind]
    params = parameters()
    give_gradients(params, 0)
    optimizer = make(params)
    (said,) = ours.explain(optimizer).refused
    assert message in said
    with pytest.raises((TypeError, ValueError, RuntimeError)) as error:
        optimizer.step()
    assert str(error.value) == said


def test_text_has_a_line_for_each_fact() -> None:
    params = parameters(shapes=[(3, 4), (300, 300)])
    optimizer = ours.Adam(params, max_grad_norm=1.0, nonfinite="skip")
    give_gradients(params, 0)
    params[0].grad = torch.ones(4, 3).t()
    optimizer.step()
    params[1].grad = torch.ones(300, 300).to_sparse()
    optimizer.skipped = 2
    threads = ours.explain(optimizer).threads
    assert repr(ours.explain(optimizer)).splitlines() == [
        "Adam: 1 step in fastvar's kernels, 2 skipped",
        "  parameters  2 of 2 with a gradient or a state, 90,012 elements",
        f"  kernels     {kernels.isa}, at most {threads} thread{'s' if threads > 1 else ''}",
        "  keywords    max_grad_norm=1.0, nonfinite='skip'",
        "  copied      gradient of parameter 0: its strides are (1, 3), those of the parameter (4, 1)",
        "  refused     Adam: gradient of parameter 1 must be a dense tensor on the CPU, got torch.float32, "
        f"torch.sparse_coo on cpu (Tensor){FOR_SPARSE}",
    ]
    assert repr(ours.explain(ours.Lion(parameters()))).endswith("  copied      nothing\n  refused     nothing")


def test_parameters_of_16_bits_are_counted() -> None:
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.bfloat16, torch.float16)]
    params += [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(3)] + parameters()
    optimizer = ours.Adam([{"params": params[:2]}, {"params": params[2:], "master": False}])
    give_gradients(params, 0, missing=[4])
    found = ours.explain(optimizer)
    assert (found.masters, found.rounded) == (2, 2)
    assert repr(found).splitlines()[2] == (
        "  16 bits     2 parameters with a master, 2 parameters rounded stochastically"
    )
    optimizer.step()
    assert sum("master" in optimizer.state[p] for p in params) == found.masters
    assert not any("16 bits" in line for line in repr(ours.explain(ours.Adam(parameters()))).splitlines())


def test_other_optimizers_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"must be given an optimizer of fastvar.torch.optim, got torch.optim.adam.Adam$"
    ):
        ours.explain(torch.optim.Adam(parameters()))
