"""Optimizers whose rules need norms or matrices: counts, moves, layouts and all else around their steps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from fastvar.torch.optim.measuring import MeasuringPlan
from tests.support.torch_tensors import assert_close, bytes_of, give_gradients, parameters, with_grad_dtype

NAMES = [name for name in ours.__all__ if getattr(getattr(ours, name), "plan_class", None) is MeasuringPlan]
SHAPES = [(7, 3), (4, 5), (6, 6)]  # every class takes matrices
every_class = pytest.mark.parametrize("name", NAMES)


def made(name: str, **options: Any) -> tuple[Any, list[Any]]:
    params = parameters(shapes=SHAPES)
    return getattr(ours, name)([{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], **options), params


def copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: x.clone() for name, x in state.items()}


def bits(params: list[Any]) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in params]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Prodigy"])
def test_tensors_are_counted_apart(name: str) -> None:
    """Each tensor is updated as by an optimizer of its own, which makes only the steps with a gradient."""
    mine, params = made(name, lr=0.1)
    theirs = parameters(shapes=SHAPES)
    alone = [getattr(ours, name)([p], lr=lr) for p, lr in zip(theirs, (0.1, 0.1, 0.3), strict=True)]
    for t in range(12):
        missing = {k for k in range(3) if (t + k) % (k + 2) == 0}
        give_gradients(params, t, missing)
        give_gradients(theirs, t, missing)
        for each in (mine, *alone):
            each.step()
        assert bits(params) == bits(theirs), t
    for p, q, each in zip(params, theirs, alone, strict=True):
        assert mine.state[p].keys() == each.state[q].keys()
        assert all(torch.equal(mine.state[p][slot], each.state[q][slot]) for slot in mine.state[p])


@every_class
def test_tensors_without_a_gradient_stay(name: str) -> None:
    mine, params = made(name)
    give_gradients(params, 0, {1})
    mine.step()
    assert params[1] not in mine.state
    give_gradients(params, 1)
    mine.step()
    before, state, version = bits(params[:1]), copied(mine.state[params[0]]), params[0]._version
    versions = [p._version for p in params[1:]]
    give_gradients(params, 2, {0})
    mine.step()
    assert bits(params[:1]) == before
    shared = {"distance", "numerator"}
    assert all(torch.equal(x, mine.state[params[0]][slot]) for slot, x in state.items() if slot not in shared)
    assert params[0]._version == version
    assert [p._version for p in params[1:]] == [v + 1 for v in versions]


def test_estimate_of_prodigy_counts_the_updates_of_each_tensor() -> None:
    """A tensor that has missed updates is measured, and updated, as by an optimizer that begins with it."""
    mine, params = made("Prodigy", initial_distance=1e-2)
    for t in range(3):
        give_gradients(params[2:], t)
        mine.step()
    late = ours.Prodigy(parameters(shapes=SHAPES)[:1], initial_distance=mine.distance)
    before = mine.state[params[2]]["numerator"].item()
    (p,) = late.param_groups[0]["params"]
    for each in (params[0], p):
        give_gradients([each], 5)
    params[2].grad = None
    mine.step()
    late.step()
    weight = [state["gradient_sum"] for state in (mine.state[params[0]], late.state[p])]
    assert_close(weight[0] * 1e-2 / late.distance, weight[1], "sums with d / d0")
    assert mine.state[params[0]]["numerator"].item() == before * 0.999**0.5  # <g, w0 - w> is 0 at first
    assert mine.state[params[0]]["step"] == 1


MOVES: dict[str, Any] = {
    "data": lambda o, p: setattr(p, "data", p.data.clone()),
    "slot": lambda o, p: o.state[p].update(copied(o.state[p])),
    "data of slots": lambda o, p: [setattr(x, "data", x.data.clone()) for x in o.state[p].values()],
    "state": lambda o, p: o.state.__setitem__(p, copied(o.state[p])),
    "no state": lambda o, p: o.state.pop(p),
    "loaded": lambda o, p: o.load_state_dict(o.state_dict()),
    "count in place": lambda o, p: o.state[p]["step"].add_(3) if "step" in o.state[p] else None,
    "rate": lambda o, p: o.param_groups[0].update(lr=0.3),
    "tensor rate": lambda o, p: o.param_groups[0].update(lr=torch.tensor(0.3)),
    "decay": lambda o, p: o.param_groups[1].update(weight_decay=0.5),
    "group": lambda o, p: o.add_param_group({"params": parameters(seed=5, shapes=SHAPES), "lr": 0.01}),
    "order": lambda o, p: o.param_groups[0]["params"].reverse(),
}


@every_class
@pytest.mark.parametrize("kind", MOVES)
def test_steps_follow_what_moves(kind: str, name: str) -> None:
    """The other optimizer plans anew before every step."""
    pairs = [made(name, lr=0.1), made(name, lr=0.1)]
    for t in range(6):
        for optimizer, params in pairs:
            if t == 3:
                MOVES[kind](optimizer, params[0])
            give_gradients([p for group in optimizer.param_groups for p in group["params"]], t)
            optimizer.step()
        pairs[1][0]._plan = None
        assert bits(pairs[0][1]) == bits(pairs[1][1]), t
    assert pairs[0][0].kernel_steps == 6


@pytest.mark.parametrize("name", ["Lamb", "Lars", "Prodigy"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_dense_layouts_run_in_place(layout: Any, name: str) -> None:
    convolutions = [torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    convolutions[1].load_state_dict(convolutions[0].state_dict())
    convolutions[1].to(memory_format=torch.contiguous_format)
    params = [[*c.parameters()] for c in convolutions]
    pairs = [(getattr(ours, name)(of), of) for of in params]
    for t in range(4):
        for optimizer, of in pairs:
            give_gradients(of, t)
            of[0].grad = of[0].grad.contiguous(memory_format=layout)
            optimizer.step()
    for p, q in zip(*params, strict=True):
        assert_close(p, q, name)
    assert params[0][0].is_contiguous(memory_format=torch.channels_last)


@with_grad_dtype
@every_class
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_in_other_formats_are_read(dtype: Any, name: str) -> None:
    ps = [torch.nn.Parameter(torch.arange(12.0).reshape(3, 4)) for _ in range(2)]
    pairs = [getattr(ours, name)([p]) for p in ps]
    ps[0].grad_dtype = dtype
    gradient = torch.randn(3, 4).to(dtype)
    for _ in range(3):
        ps[0].grad, ps[1].grad = gradient, gradient.float()
        for each in pairs:
            each.step()
    assert_close(*ps, str(dtype))
    assert torch.equal(*ps) or dtype is torch.float64


@every_class
def test_steps_are_no_ops_without_gradients_or_with_infinite_ones(name: str) -> None:
    mine, params = made(name)
    before = bytes_of(mine, params)
    mine.step()
    give_gradients(params, 0)
    mine.found_inf = torch.ones(())  # as torch.amp.GradScaler says it
    mine.step()
    assert bytes_of(mine, params) == before
    assert mine.kernel_steps == 0
    mine.found_inf = torch.zeros(())
    assert mine.step(lambda: 5.0) == 5.0
    assert mine.kernel_steps == 1


@every_class
def test_scales_of_gradients(name: str) -> None:
    pairs = [made(name), made(name)]
    for t in range(4):
        for _, params in pairs:
            give_gradients(params, t)
        for p in pairs[0][1]:
            p.grad *= 8
        pairs[0][0].grad_scale = torch.tensor(8.0)
        for optimizer, _ in pairs:
            optimizer.step()
    assert bits(pairs[0][1]) == bits(pairs[1][1])


@every_class
def test_refused_steps_change_nothing(name: str) -> None:
    """Also where another tensor of the step is good, and when the plan has been made."""
    mine, params = made(name)
    for t, odd in itertools.product(range(2), range(3)):
        give_gradients(params, t)
        params[odd].grad = params[odd].grad.to_sparse() if odd == 1 else params[odd].detach()
        before, versions = bytes_of(mine, params), [p._version for p in params]
        with pytest.raises((TypeError, ValueError), match=f"^{name}: gradient of '?parameter {odd}"):
            mine.step()
        assert bytes_of(mine, params) == before
        assert versions == [p._version for p in params]
        if odd == 2:
            give_gradients(params, t)
            mine.step()


def test_groups_of_adafactor_have_signs_of_their_own() -> None:
    together, apart = parameters(shapes=SHAPES[:2]), parameters(shapes=SHAPES[:2])
    one = ours.Adafactor([{"params": together[:1], "maximize": True}, {"params": together[1:]}])
    others = [ours.Adafactor(apart[:1], maximize=True), ours.Adafactor(apart[1:])]
    for t in range(3):
        for params in (together, apart):
            give_gradients(params, t)
        for each in (one, *others):
            each.step()
    assert bits(together) == bits(apart)


def test_sums_of_another_shape_are_refused() -> None:
    (p,) = parameters(shapes=[(3, 4)])
    give_gradients([p], 0)
    optimizer = ours.Adafactor([p])
    optimizer.step()
    optimizer.state[p]["row_var"] = torch.ones(1, 4)
    before = bytes_of(optimizer, [p])
    with pytest.raises(TypeError, match=r"Adafactor: slot row_var of parameter 0 must be .* of shape \(3, 1\)"):
        optimizer.step()
    assert bytes_of(optimizer, [p]) == before
