"""What PyTorch has around an optimizer works with ours, and trains as with PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastvar.torch.optim as ours
from tests.support.torch_tensors import EVERY, assert_close

STEPS = 6


def network(bias: bool = True) -> Any:
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 7, bias), torch.nn.Linear(7, 3, bias)
    return torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])


def loss_of(net: Any, t: int) -> Any:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(t))
    return net(x).square().mean()


def train(net: Any, optimizer: Any, steps: range, before_step: Callable[[], Any] = lambda: None) -> list[float]:
    losses = []
    for t in steps:
        optimizer.zero_grad()
        loss = loss_of(net, t)
        loss.backward()
        before_step()
        optimizer.step()
        losses.append(loss.item())
    return losses


# Each is given torch.optim or ours; it returns a module, its losses and the optimizers that stepped.


def clipped(library: Any, clip: Callable[[Any], Any]) -> Any:
    net = network()
    optimizer = library.AdamW(net.parameters(), lr=0.01)
    losses = train(net, optimizer, range(STEPS), lambda: clip(net.parameters()))
    return net, losses, [optimizer]


def clipped_by_norm(library: Any) -> Any:
    return clipped(library, lambda params: clip_grad_norm_(params, 0.05))


def clipped_by_value(library: Any) -> Any:
    return clipped(library, lambda params: clip_grad_value_(params, 0.005))


def compiled(library: Any) -> Any:
    net = network()
    optimizer = library.AdamW(net.parameters(), lr=0.01)
    losses = train(torch.compile(net, backend="aot_eager"), optimizer, range(STEPS))
    return net, losses, [optimizer]


def averaged(library: Any) -> Any:
    net = network()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    optimizer = library.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for t in range(STEPS):
        losses += train(net, optimizer, range(t, t + 1))
        average.update_parameters(net)
    return average, losses, [optimizer]


def parametrized(library: Any) -> Any:
    net = network()
    parametrizations.weight_norm(net[0])
    parametrizations.orthogonal(net[2])
    optimizer = library.Adam(net.parameters(), lr=0.01)
    return net, train(net, optimizer, range(STEPS)), [optimizer]


def accumulated(library: Any) -> Any:
    net = network()
    optimizer = library.AdamW(net.parameters(), lr=0.01)
    losses = []
    for t in range(0, 2 * STEPS, 2):
        optimizer.zero_grad(set_to_none=t % 4 == 0)
        for k in range(t, t + 2):
            loss = loss_of(net, k) / 2
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
    return net, losses, [optimizer]


def scaled_and_clipped(library: Any) -> Any:
    net = network()
    optimizer = library.AdamW(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = []
    for t in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(net, t)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(net.parameters(), 0.05)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return net, losses, [optimizer]


def in_backward(library: Any) -> Any:
    """Step each parameter when its gradient is there, and let the gradient go."""
    net = network()
    optimizers = {p: library.Adam([p], lr=0.01) for p in net.parameters()}

    def step(p: Any) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    losses = []
    for t in range(STEPS):
        loss = loss_of(net, t)
        loss.backward()
        losses.append(loss.item())
    return net, losses, [*optimizers.values()]


def offloaded(library: Any) -> Any:
    """Step float32 copies of a network in bfloat16, as for one on another device."""
    net = network().to(torch.bfloat16)
    host = [torch.nn.Parameter(p.detach().to("cpu", torch.float32, copy=True)) for p in net.parameters()]
    optimizer = library.AdamW(host, lr=0.01)
    for t in range(STEPS):
        net.zero_grad()
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(t))
        net(x.to(torch.bfloat16)).square().mean().backward()
        for copied, p in zip(host, net.parameters(), strict=True):
            copied.grad = p.grad.to("cpu", torch.float32)
        optimizer.step()
        with torch.no_grad():
            for copied, p in zip(host, net.parameters(), strict=True):
                p.copy_(copied)
    return torch.nn.ParameterList(host), [], [optimizer]


WAYS = [
    clipped_by_norm,
    clipped_by_value,
    compiled,
    averaged,
    parametrized,
    accumulated,
    scaled_and_clipped,
    in_backward,
    offloaded,
]


@pytest.mark.parametrize("way", WAYS)
def test_training_is_that_of_pytorch(way: Any) -> None:
    net, losses, optimizers = way(ours)
    other, wanted, _ = way(torch.optim)
    assert [optimizer.kernel_steps for optimizer in optimizers] == [STEPS] * len(optimizers)
    assert_close(torch.tensor(losses), torch.tensor(wanted), "losses")
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert_close(p, q, name)


def network_for(name: str) -> Any:
    return network(bias=name != "Muon")  # whose parameters must be matrices


def optimizer_of(name: str, net: Any) -> Any:
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    return getattr(ours, name)(net.parameters(), lr=0.01, **options)


def assert_go_on_alike(pairs: list[Any]) -> None:
    """Compare all bits after further steps."""
    for net, optimizer in pairs:
        before = optimizer.kernel_steps
        train(net, optimizer, range(3, STEPS))
        assert optimizer.kernel_steps == before + 3
    (net, _), (other, _) = pairs
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


every_class = pytest.mark.parametrize("name", [*EVERY, *sorted(set(ours.native.__all__) - {"Ftrl"})])


@every_class
@pytest.mark.parametrize("flat", [False, True])
def test_state_by_the_names_of_parameters(name: str, flat: bool) -> None:
    net, options = network_for(name), StateDictOptions(flatten_optimizer_state_dict=flat)
    optimizer = optimizer_of(name, net)
    train(net, optimizer, range(3))
    state = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=options))
    other = copy.deepcopy(net)
    another = optimizer_of(name, other)
    set_optimizer_state_dict(other, another, state, options=options)
    assert_go_on_alike([(net, optimizer), (other, another)])


def test_rate_0_by_which_pytorch_makes_state_is_refused_by_ftrl() -> None:
    net = network()
    optimizer = ours.Ftrl(net.parameters(), lr=0.01)
    with pytest.raises(ValueError, match=r"Ftrl: lr must be > 0, got 0\.0"):
        get_optimizer_state_dict(net, optimizer)


@every_class
@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # in PyTorch 2.6 itself
def test_distributed_checkpoints_without_ranks(name: str, tmp_path: Path) -> None:
    net = network_for(name)
    optimizer = optimizer_of(name, net)
    train(net, optimizer, range(3))
    dcp.save(dict(zip("mo", get_state_dict(net, optimizer), strict=True)), checkpoint_id=tmp_path)
    other = network_for(name)
    another = optimizer_of(name, other)
    state = dict(zip("mo", get_state_dict(other, another), strict=True))
    dcp.load(state, checkpoint_id=tmp_path)
    set_state_dict(other, another, model_state_dict=state["m"], optim_state_dict=state["o"])
    assert_go_on_alike([(net, optimizer), (other, another)])
