"""`ema` beside PyTorch's AveragedModel, on every class."""

from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastvar.torch.optim as ours
from tests.support.torch_tensors import (
    CLASSES,
    MEASURING,
    NAMES,
    assert_close,
    bytes_of,
    give_gradients,
    parameters,
)

every_class = pytest.mark.parametrize("name", CLASSES)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.params = torch.nn.ParameterList(parameters())


@every_class
def test_averages_are_those_of_pytorch(name: str) -> None:
    net = Net()
    params = [*net.parameters()]
    optimizer = getattr(ours, name)(params, ema=0.75)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    for t in range(6):
        give_gradients(params, t, missing=[t % 2, 3] if t < 4 else [])  # one has its first gradient late
        optimizer.step()
        averaged.update_parameters(net)
        weights = [p.detach().clone() for p in params]
        with optimizer.average_parameters():
            for k, (p, wanted) in enumerate(zip(params, averaged.parameters(), strict=True)):
                assert_close(p, wanted, f"step {t}: parameter {k}")
        assert all(torch.equal(p, w) for p, w in zip(params, weights, strict=True))
    optimizer.copy_averages()
    for p, wanted in zip(params, averaged.parameters(), strict=True):
        assert_close(p, wanted, "copied")
    assert optimizer.kernel_steps == 6


@pytest.mark.parametrize("name", [*NAMES, *MEASURING, *ours.native.__all__])
def test_averages_go_on_after_a_new_plan(name: str) -> None:
    p = torch.nn.Parameter(torch.randn(7, 5))
    optimizer = getattr(ours, name)([p], lr=0.1, ema=0.75, max_grad_norm=1.0, nonfinite="skip")
    for t in range(4):
        give_gradients([p], t)
        before = None if t == 0 else optimizer.state[p]["ema"].clone()
        optimizer.step()
        wanted = p.detach() if before is None else 0.75 * before + 0.25 * p.detach()
        assert_close(optimizer.state[p]["ema"], wanted, f"step {t}")
        optimizer.load_state_dict(optimizer.state_dict())
    p.grad[0] = torch.nan
    state = bytes_of(optimizer, [p])
    optimizer.step()
    assert bytes_of(optimizer, [p]) == state
    assert (optimizer.kernel_steps, optimizer.skipped) == (4, 1)


def test_parameters_with_averages_are_not_stepped() -> None:
    params = parameters()
    optimizer = ours.Adam(params, ema=0.5)
    for t in range(2):
        give_gradients(params, t)
        optimizer.step()
    weights = [p.detach().clone() for p in params]
    with optimizer.average_parameters(), optimizer.average_parameters():
        averages = [p.detach().clone() for p in params]
    with optimizer.average_parameters():
        with pytest.raises(RuntimeError, match=r"^Adam: the parameters hold their averages; step after `with`$"):
            optimizer.step()
        assert all(torch.equal(p, a) for p, a in zip(params, averages, strict=True))
    assert all(torch.equal(p, w) for p, w in zip(params, weights, strict=True))
    optimizer.step()
    assert optimizer.kernel_steps == 3


def test_averages_follow_the_keyword() -> None:
    params = parameters()
    optimizer = ours.SGD(params, lr=0.1)
    with pytest.raises(ValueError, match=r"^SGD: must be given ema to keep averages$"):
        optimizer.copy_averages()
    for t, ema in enumerate([None, 0.5, 0.25, None, 0.5]):
        optimizer.ema = ema
        give_gradients(params, t)
        before = [optimizer.state[p]["ema"].clone() for p in params if "ema" in optimizer.state.get(p, ())]
        optimizer.step()
        if ema is None:
            assert not any("ema" in optimizer.state.get(p, ()) for p in params)
        elif not before:  # a copy after the first update
            assert all(torch.equal(optimizer.state[p]["ema"], p) for p in params)
        else:
            for p, old in zip(params, before, strict=True):
                assert_close(optimizer.state[p]["ema"], ema * old + (1 - ema) * p.detach(), "ema")


def test_averages_lie_like_their_parameters() -> None:
    p = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).t())
    optimizer = ours.Adam([p], ema=0.5, lr=0.1)
    for _ in range(2):
        p.grad = torch.ones(4, 3)
        optimizer.step()
    assert optimizer.state[p]["ema"].stride() == p.stride()
    optimizer.state[p]["ema"] = optimizer.state[p]["ema"].contiguous()
    before = optimizer.state[p]["ema"].clone()
    optimizer.step()
    assert_close(optimizer.state[p]["ema"], 0.5 * before + 0.5 * p.detach(), "ema")
