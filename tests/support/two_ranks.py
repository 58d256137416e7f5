"""Training by two processes that share gradients through gloo. tests/torch/optim/test_two_ranks.py starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel

import fastvar.torch.optim as ours

STEPS = 6
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True}),
    "adagrad": ("Adagrad", {"lr": 0.1}),  # has state before its first step
    "nadam": ("NAdam", {"lr": 0.01}),  # carries numbers in its state
}
SIXTEEN: dict[str, tuple[Any, dict[str, Any]]] = {  # parameters of 16 bits, and their keywords
    "bfloat16 with a master": (torch.bfloat16, {"master": True}),
    "bfloat16 alone": (torch.bfloat16, {"master": False, "seed": 7}),
    "float16 with a master": (torch.float16, {"master": True}),
}
LIBRARIES = {"ours": ours, "theirs": torch.optim}
Result = tuple[list[torch.Tensor], list[float], int]  # weights, losses and steps in kernels


def network(dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).to(dtype)


def ddp(bucket_view: bool = False, dtype: Any = torch.float32) -> Any:
    """Return a network that both ranks share."""
    return DistributedDataParallel(network(dtype), gradient_as_bucket_view=bucket_view)


def loss_of(net: Any, t: int, rank: int) -> Any:
    """Return the loss of the batch of a step, which differs between ranks."""
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(100 * t + rank))
    return net(x.to(next(net.parameters()).dtype)).square().mean()


def train(net: Any, optimizer: Any, rank: int, steps: range = range(STEPS)) -> list[float]:
    """Train on the batches of these steps; return the losses."""
    losses = []
    for t in steps:
        optimizer.zero_grad()
        loss = loss_of(net, t, rank)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def result(net: Any, losses: list[float], steps: int) -> Result:
    return [p.detach().clone() for p in net.parameters()], losses, steps


def make(library: Any, kind: str, net: Any) -> Any:
    name, options = KINDS[kind]
    return getattr(library, name)(net.parameters(), **options)


def data_parallel(library: Any, kind: str, rank: int, bucket_view: bool) -> Result:
    net = ddp(bucket_view)
    optimizer = make(library, kind, net)
    return result(net, train(net, optimizer, rank), getattr(optimizer, "kernel_steps", 0))


def sharded(library: Any, kind: str, rank: int, bucket_view: bool) -> Result:
    """Let each rank step its part of the parameters; half-way, the state of all goes into another optimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns that it uses torch.jit.script

    name, options = KINDS[kind]
    net = ddp()

    def zero() -> Any:
        return ZeroRedundancyOptimizer(
            net.parameters(), getattr(library, name), parameters_as_bucket_view=bucket_view, **options
        )

    optimizer = zero()
    losses = train(net, optimizer, rank, range(3))
    optimizer.consolidate_state_dict(0)
    state = [optimizer.state_dict() if rank == 0 else None]
    distributed.broadcast_object_list(state)
    other = zero()
    other.load_state_dict(state[0])
    losses += train(net, other, rank, range(3, STEPS))
    return result(net, losses, sum(getattr(each.optim, "kernel_steps", 0) for each in (optimizer, other)))


def checkpointed(library: Any, kind: str, rank: int, folder: str) -> Result:
    """Save half-way by torch.distributed.checkpoint, and go on with another network and optimizer."""
    net = ddp()
    optimizer = make(library, kind, net)
    losses = train(net, optimizer, rank, range(3))
    dcp.save(dict(zip("mo", get_state_dict(net, optimizer), strict=True)), checkpoint_id=folder)
    net, before = ddp(), getattr(optimizer, "kernel_steps", 0)
    optimizer = make(library, kind, net)
    state = dict(zip("mo", get_state_dict(net, optimizer), strict=True))
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(net, optimizer, model_state_dict=state["m"], optim_state_dict=state["o"])
    ready = getattr(optimizer, "kernel_steps", 0)  # PyTorch makes the state by a step at rate 0
    losses += train(net, optimizer, rank, range(3, STEPS))
    return result(net, losses, before + getattr(optimizer, "kernel_steps", 0) - ready)


def sixteen(case: str, rank: int, bucket_view: bool) -> list[Any]:
    """Return the parameters of 16 bits after training on both ranks, and their masters."""
    dtype, options = SIXTEEN[case]
    net = ddp(bucket_view, dtype)
    optimizer = ours.AdamW(net.parameters(), lr=0.01, **options)
    train(net, optimizer, rank)
    return with_masters(net, optimizer)


def sixteen_alone(case: str) -> list[Any]:
    """Return the same of one process, which averages the gradients of both ranks."""
    dtype, options = SIXTEEN[case]
    net = network(dtype)
    optimizer = ours.AdamW(net.parameters(), lr=0.01, **options)
    for t in range(STEPS):
        of_ranks = [torch.autograd.grad(loss_of(net, t, rank), [*net.parameters()]) for rank in range(2)]
        for p, mine, other in zip(net.parameters(), *of_ranks, strict=True):
            p.grad = mine / 2 + other / 2
        optimizer.step()
    return with_masters(net, optimizer)


def with_masters(net: Any, optimizer: Any) -> list[Any]:
    assert optimizer.kernel_steps == STEPS
    masters = [state["master"] for state in optimizer.state.values() if "master" in state]
    return [p.detach().clone() for p in net.parameters()] + masters


def runs(rank: int, folder: Path) -> Iterator[tuple[str, str, Result]]:
    """Run everything with both libraries."""
    for who, library in LIBRARIES.items():
        for kind in KINDS:
            for view in (False, True):
                yield f"ddp {kind} view={view}", who, data_parallel(library, kind, rank, view)
                yield f"zero {kind} view={view}", who, sharded(library, kind, rank, view)
            yield f"dcp {kind}", who, checkpointed(library, kind, rank, str(folder / f"{who} {kind}"))


def refusals() -> dict[str, str]:
    """Return the errors of what docs/integrations.md says is refused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer

    net = torch.nn.Linear(4, 2)
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = ours.AdamW(net.parameters())
    for p in net.parameters():  # no forward pass: in PyTorch 2.6 it needs an accelerator
        p.grad = torch.zeros_like(p)
    attempts = {
        "fully_shard": optimizer.step,
        "overlap": lambda: ZeroRedundancyOptimizer(
            torch.nn.Linear(3, 2).parameters(), ours.AdamW, overlap_with_ddp=True
        ),
    }
    errors = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except (TypeError, ValueError) as error:
            errors[name] = str(error)
    return errors


def main(rank: int, folder: Path) -> None:
    """Be one of the two processes."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, dict[str, Result]] = {}
    for case, who, got in runs(rank, folder):
        found.setdefault(case, {})[who] = got
    sixteens = {(c, view): sixteen(c, rank, view) for c in SIXTEEN for view in (False, True)}
    torch.save((found, sixteens, refusals()), folder / f"{rank}.pt")
    distributed.destroy_process_group()
