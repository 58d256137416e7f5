"""Everything around a step stays PyTorch's: closures, hooks, scalers, copies; and nothing loads it."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import fastvar.torch
import fastvar.torch.optim as ours
from fastvar.hyper import deserialize
from tests.support.torch_tensors import EVERY, assert_same, give_gradients, parameters, parameters_of


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


every_class = pytest.mark.parametrize("name", EVERY)


@pytest.mark.parametrize("module", ["fastvar", "fastvar.torch"])
def test_import_does_not_load_pytorch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@every_class
def test_classes_are_those_of_pytorch(name: str) -> None:
    mine, other = getattr(ours, name), getattr(torch.optim, name)
    assert issubclass(mine, other)
    assert mine.zero_grad is other.zero_grad


@every_class
def test_stored_optimizers_keep_their_class(name: str) -> None:
    """A checkpoint of `fastvar.torch.Adam` is read as that class, also after steps on tensors."""
    ps = parameters_of(name)
    optimizer = getattr(ours, name)(ps)
    give_gradients(ps, 0)
    optimizer.step()
    assert optimizer.kernel_steps == 1
    stored = fastvar.torch.__dict__[name](lr=0.25)
    config = {"class_name": f"torch.{name}", "config": stored.get_config()}
    assert type(deserialize(config)) is type(stored)


def test_what_is_not_there_is_named(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.optim, "Novel", torch.optim.Adam, raising=False)
    with pytest.raises(AttributeError, match=r"fastvar.torch.optim has no Novel; torch.optim.Novel is there"):
        _ = ours.Novel
    with pytest.raises(AttributeError, match=r"'fastvar.torch.optim' has no attribute 'Sophia'$"):
        _ = ours.Sophia


@every_class
def test_no_gradient_at_all_changes_nothing(name: str) -> None:
    params = parameters_of(name)
    before = [p.detach().clone() for p in params]
    optimizer = getattr(ours, name)(params)
    state = {p: {**of} for p, of in optimizer.state.items()}
    for _ in range(2):
        assert optimizer.step() is None
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert optimizer.state == state
    assert optimizer.kernel_steps == 0


@pytest.mark.parametrize("name", [name for name in EVERY if name != "Rprop"])
def test_rate_0_leaves_the_bits_of_weights(name: str) -> None:
    params = parameters_of(name)
    before = [p.detach().clone() for p in params]
    optimizer = getattr(ours, name)(params, lr=0.0)
    give_gradients(params, 0)
    optimizer.step()
    assert all(p.detach().numpy().tobytes() == b.numpy().tobytes() for p, b in zip(params, before, strict=True))


def test_groups_have_hyperparameters_of_their_own() -> None:
    mine, theirs = parameters(), parameters()
    for make, params in ((ours.SGD, mine), (torch.optim.SGD, theirs)):
        groups = [
            {"params": params[:2], "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
            {"params": params[2:3], "maximize": True},
            {"params": params[3:], "lr": 0.5, "momentum": 0.5, "dampening": 0.25},
        ]
        optimizer = make(groups, lr=0.1)
        for t in range(5):
            give_gradients(params, t, missing=[t])
            optimizer.step()
        if make is ours.SGD:
            first = optimizer
    assert_same(first, mine, optimizer, theirs, "groups")


@pytest.mark.parametrize("kind", ["lr", "betas", "weight_decay"])
def test_tensors_as_hyperparameters(kind: str) -> None:
    options: dict[str, Any] = {
        "lr": {"lr": torch.tensor(0.1)},
        "betas": {"betas": (torch.tensor(0.5), torch.tensor(0.75)), "lr": 0.1},
        "weight_decay": {"weight_decay": torch.tensor(0.1), "lr": 0.1},
    }[kind]
    name = "SGD" if kind == "weight_decay" else "Adam"
    mine, theirs = parameters(), parameters()
    optimizer = getattr(ours, name)(mine, **options)
    other = getattr(torch.optim, name)(theirs, **options, foreach=False)
    for t in range(4):
        if kind == "lr":
            options["lr"].mul_(0.5)  # in place, for both
        for each, params in ((optimizer, mine), (other, theirs)):
            give_gradients(params, t)
            each.step()
        assert_same(optimizer, mine, other, theirs, f"step {t}")


def test_closure_runs_with_gradients_on_and_its_loss_is_returned() -> None:
    p = torch.nn.Parameter(torch.tensor([4.0]))
    optimizer = ours.SGD([p], lr=0.25)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 16
    assert p.item() == 2


def test_hooks_run_around_the_step() -> None:
    params, seen = parameters(), []
    optimizer = ours.Adam(params)
    give_gradients(params, 0)
    handles = [
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(("before", o.kernel_steps))),
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(("after", o.kernel_steps))),
    ]
    optimizer.step()
    handles += [register_optimizer_step_post_hook(lambda *_: seen.append("all"))]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert seen == [("before", 0), ("after", 1), ("before", 1), ("after", 2), "all"]


def test_profilers_see_the_step() -> None:
    params = parameters()
    optimizer = ours.Adam(params)
    give_gradients(params, 0)
    with torch.autograd.profiler.profile() as profile:
        optimizer.step()
    assert "Optimizer.step#Adam.step" in [event.name for event in profile.function_events]


@pytest.mark.parametrize("fused", [False, True])
def test_scaler_of_losses(fused: bool) -> None:
    mine, theirs = parameters(), parameters()
    pairs = [(ours.Adam(mine, fused=fused), mine), (torch.optim.Adam(theirs, fused=fused), theirs)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in pairs]
    for t in range(5):
        for (optimizer, params), scaler in zip(pairs, scalers, strict=True):
            scaler.scale(torch.ones(()))
            give_gradients(params, t)
            for p in params:
                p.grad *= scaler.get_scale()
            if t == 2:
                params[0].grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
    assert_same(pairs[0][0], mine, pairs[1][0], theirs, "scaled")
    assert pairs[0][0].kernel_steps == 4


@pytest.mark.parametrize("through", [copy.deepcopy, pickled], ids=["copy", "pickle"])
@every_class
def test_copies_go_on_apart(name: str, through: Any) -> None:
    params = parameters_of(name)
    optimizer = getattr(ours, name)(params)
    give_gradients(params, 0)
    optimizer.step()
    twin, same = through((optimizer, params))
    for t in range(1, 4):
        for each, of in ((optimizer, params), (twin, same)):
            give_gradients(of, t)
            each.step()
    assert_same(twin, same, optimizer, params, name)
    assert all(torch.equal(p, q) for p, q in zip(params, same, strict=True))


def test_versions_of_parameters_advance() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p], lr=0.1)
    loss = p.square().sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_let_go() -> None:
    import weakref

    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p])
    for _ in range(2):
        p.grad = torch.ones(3)
        seen = weakref.ref(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        assert seen() is None


def test_counts_are_views_of_one_tensor() -> None:
    params = parameters()
    optimizer = ours.Adam(params)
    give_gradients(params, 0)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    steps = [optimizer.state[p]["step"] for p in params]
    assert len({step.untyped_storage().data_ptr() for step in steps}) == 1
    assert [step.item() for step in steps] == [2.0] * len(params)


def test_many_small_parameters_and_threads() -> None:
    shapes = [(k % 50,) for k in range(400)] + [(40000,)]
    mine, theirs = parameters(shapes=shapes), parameters(shapes=shapes)
    optimizer, other = ours.AdamW(mine), torch.optim.AdamW(theirs, foreach=False)
    for t in range(3):
        for each, params in ((optimizer, mine), (other, theirs)):
            give_gradients(params, t, missing=range(t, 400, 3) if t else ())
            each.step()
    assert_same(optimizer, mine, other, theirs, "many")


def test_compiled_step_runs_ours() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p], lr=0.5)
    p.grad = torch.ones(3)
    torch.compile(optimizer.step, backend="eager")()
    assert (p == 0.5).all()
    assert optimizer.kernel_steps == 1
