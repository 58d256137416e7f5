"""What kernels cannot update is refused before anything changes; all else is right."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvar.torch.optim as ours
from fastvar.kernels.tensors import Reader
from fastvar.torch.optim import planning, reading
from tests.support.torch_tensors import assert_same, bytes_of, give_gradients, parameters, with_grad_dtype

UNEVEN = torch.arange(12.0).reshape(3, 4)
elementwise_and_measuring = pytest.mark.parametrize("name", ["Adam", "Lamb"])


class Subclass(torch.Tensor):
    pass


def inference() -> Any:
    with torch.inference_mode():
        return torch.zeros(3)


def fake() -> Any:
    with FakeTensorMode():
        return torch.zeros(3)


def negated() -> Any:
    return torch._neg_view(UNEVEN.clone())


@pytest.fixture(params=[True, False], ids=["dlpack", "methods"])
def reader(request: Any, monkeypatch: Any) -> Any:
    """Both ways of reading tensors."""
    if request.param and not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this PyTorch has no such way")
    made = Reader((torch.Tensor, torch.nn.Parameter), torch.strided, request.param)
    assert made.exchanges == request.param
    monkeypatch.setattr(planning, "READER", made)
    return made


def test_readers_refuse_classes_without_compiled_attributes() -> None:
    class Slow:
        grad = property(lambda self: None)

        def is_neg(self) -> bool:
            return False

    with pytest.raises(TypeError, match="Reader: grad and is_neg must be built into the class of tensors"):
        Reader((Slow,), None)


BAD_PARAMETERS: dict[str, Any] = {
    "int16": lambda: torch.zeros(3, dtype=torch.int16),
    "float8": lambda: torch.zeros(3, dtype=torch.float8_e5m2),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "meta": lambda: torch.zeros(3, device="meta"),
    "negative": negated,
    "expanded": lambda: torch.zeros(1).expand(3),
    "strided": lambda: torch.zeros(6)[::2],
    "overlapping": lambda: torch.zeros(6).as_strided((2, 3), (1, 1)),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "subclass": lambda: torch.zeros(3).as_subclass(Subclass),
    "inference": inference,
    "fake": fake,
}


@elementwise_and_measuring
@pytest.mark.parametrize("kind", BAD_PARAMETERS)
def test_bad_parameters_are_refused(kind: str, name: str, reader: Any) -> None:
    bad, good = BAD_PARAMETERS[kind](), parameters()
    optimizer = getattr(ours, name)([{"params": good}, {"params": [bad]}])
    give_gradients(good, 0)
    bad.grad = None if kind == "fake" else bad.detach().clone()
    if bad.grad is None:
        with FakeTensorMode():
            bad.grad = torch.ones(3)
    before = bytes_of(optimizer, good)
    there = "; use torch.optim.Adam" if name == "Adam" else ""
    with pytest.raises(TypeError, match=rf"^{name}: parameter 5 must be a dense .* got .*{there}$"):
        optimizer.step()
    assert bytes_of(optimizer, good) == before
    assert not optimizer.state
    bad.grad = None
    optimizer.step()
    assert optimizer.kernel_steps == 1


def test_quantized_parameters_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)
    assert reading.READER.memory(q) is None


GRADIENTS: dict[str, Any] = {
    "negative": negated,
    "imaginary part": lambda: torch.complex(UNEVEN, UNEVEN).conj().imag,
    "imaginary number": lambda: torch.complex(UNEVEN, UNEVEN).conj().imag,
    "expanded": lambda: torch.ones(()).expand(3, 4),
    "zero": lambda: torch._efficientzerotensor((3, 4)),
    "transposed": lambda: UNEVEN.reshape(4, 3).t(),
    "strided": lambda: UNEVEN.repeat(1, 2)[:, ::2],
    "of another graph": lambda: UNEVEN.clone().requires_grad_() * 2,
    "parameter": lambda: torch.nn.Parameter(UNEVEN.clone()),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_odd_gradients_mean_what_pytorch_takes_them_for(kind: str, transposed: bool, reader: Any) -> None:
    size = slice(1) if kind == "imaginary number" else slice(None)
    start = UNEVEN.reshape(4, 3).t() if transposed else UNEVEN.clone()
    ps = [torch.nn.Parameter(start[size, size].clone()) for _ in range(2)]
    mine, other = ours.Adam(ps[:1], lr=0.1), torch.optim.Adam(ps[1:], lr=0.1, foreach=False)
    for _ in range(3):
        for p, optimizer in zip(ps, (mine, other), strict=True):
            gradient = GRADIENTS[kind]()[size, size]
            p.grad = gradient.detach() if kind == "parameter" else gradient
            optimizer.step()
    assert_same(mine, ps[:1], other, ps[1:], kind)
    assert mine.kernel_steps == 3


def subclassed(p: Any) -> Any:
    return torch.ones(3, 4).as_subclass(Subclass)


BAD_GRADIENTS: dict[str, Any] = {
    "sparse": (
        lambda p: torch.ones(3, 4).to_sparse(),
        TypeError,
        "must be a dense tensor on the CPU.*; SGD, Adagrad and SparseAdam take",
    ),
    "aliased": (lambda p: p.detach(), ValueError, "must not share memory with .*parameter 0'?; pass a copy"),
    "subclass": (subclassed, TypeError, "must be a dense tensor on the CPU"),
}


@elementwise_and_measuring
@pytest.mark.parametrize("kind", BAD_GRADIENTS)
def test_bad_gradients_are_refused(kind: str, name: str, reader: Any) -> None:
    make, error, message = BAD_GRADIENTS[kind]
    p, rest = torch.nn.Parameter(UNEVEN.clone()), parameters()
    optimizer = getattr(ours, name)([p, *rest], lr=0.1)
    give_gradients(rest, 0)
    p.grad = make(p)
    before = bytes_of(optimizer, [p, *rest])
    for _ in range(2):
        with pytest.raises(error, match=f"^{name}: gradient of '?parameter 0'?:? ?{message}"):
            optimizer.step()
        assert bytes_of(optimizer, [p, *rest]) == before
        assert not optimizer.state
    p.grad = torch.ones(3, 4)
    optimizer.step()
    before = bytes_of(optimizer, [p, *rest])
    p.grad = make(p)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert bytes_of(optimizer, [p, *rest]) == before
    assert optimizer.kernel_steps == 1


@elementwise_and_measuring
def test_a_parameter_of_another_shape_is_refused_once_it_has_slots(name: str) -> None:
    p = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = getattr(ours, name)([p], lr=0.1)
    p.grad = torch.ones(3, 4)
    optimizer.step()
    p.data = torch.zeros(2, 5)
    p.grad = torch.ones(2, 5)
    wanted = rf"^{name}: slot \w+ of parameter 0 must have the shape \(2, 5\) of it, got \(3, 4\)$"
    with pytest.raises(ValueError, match=wanted):
        optimizer.step()
    assert not p.detach().any()


@elementwise_and_measuring
def test_parameters_that_share_memory_are_refused(name: str) -> None:
    memory = torch.zeros(10)
    first, second = memory[:6].requires_grad_(), memory[5:].requires_grad_()
    first.grad, second.grad = torch.ones(6), torch.ones(5)
    optimizer = getattr(ours, name)([first, second])
    both = f"{name}: '?parameter 0'? and {name}: '?parameter 1'? must not share memory"
    with pytest.raises(ValueError, match=both):
        optimizer.step()
    assert not memory.any()
    assert not optimizer.state


def test_misaligned_memory_is_refused_or_copied() -> None:
    array = np.frombuffer(bytearray(53), np.uint8)[1:49].view(np.float32).reshape(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = torch.from_numpy(array)
    optimizer = ours.SGD([tensor], lr=0.5)
    tensor.grad = torch.ones(3, 4)
    if tensor.data_ptr() % 4:  # the buffer itself begins at a boundary
        with pytest.raises(ValueError, match="SGD: parameter 0: must be aligned to 4 bytes"):
            optimizer.step()
        assert not array.any()
    p = torch.nn.Parameter(torch.zeros(3, 4))
    array[...] = 1
    p.grad = tensor.detach()
    ours.SGD([p], lr=0.5).step()
    assert (p == -0.5).all()


def test_errors_name_parameters_as_pytorch_does() -> None:
    layer = torch.nn.Linear(2, 2, dtype=torch.complex64)
    optimizer = ours.Adam(layer.named_parameters())
    layer.bias.grad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="Adam: bias must be a dense float32, float64, bfloat16 or float16 tensor"):
        optimizer.step()


@pytest.mark.parametrize("flag", ["capturable", "differentiable"])
def test_flags_that_need_pytorch_are_refused(flag: str) -> None:
    params = parameters()
    give_gradients(params, 0)
    optimizer = ours.Adam(params, **{flag: True})
    with pytest.raises(ValueError, match=f"Adam: {flag} must be False here; use torch.optim.Adam"):
        optimizer.step()
    optimizer = ours.Adam(params)
    optimizer.step()
    optimizer.param_groups[0][flag] = True
    with pytest.raises(ValueError, match=flag):
        optimizer.step()


MOVES: dict[str, Any] = {
    "data": lambda o, p: setattr(p, "data", p.data.clone()),
    "data of another size": lambda o, p: setattr(p, "data", p.data),
    "slot": lambda o, p: o.state[p].update(exp_avg=o.state[p]["exp_avg"].clone()),
    "data of a slot": lambda o, p: setattr(o.state[p]["exp_avg"], "data", o.state[p]["exp_avg"].data.clone()),
    "layout of a slot": lambda o, p: o.state[p].update(exp_avg=o.state[p]["exp_avg"].t().contiguous().t()),
    "layout": lambda o, p: setattr(p, "data", p.data.t().contiguous().t()),
    "count": lambda o, p: o.state[p].update(step=o.state[p]["step"].clone()),
    "count in place": lambda o, p: o.state[p]["step"].add_(3),
    "state": lambda o, p: o.state.__setitem__(p, {k: v.clone() for k, v in o.state[p].items()}),
    "no state": lambda o, p: o.state.pop(p),
    "loaded": lambda o, p: o.load_state_dict(o.state_dict()),
    "rate": lambda o, p: o.param_groups[0].update(lr=0.3),
    "tensor rate": lambda o, p: o.param_groups[0].update(lr=torch.tensor(0.3)),
    "betas": lambda o, p: o.param_groups[0].update(betas=[0.5, 0.5]),
    "maximize": lambda o, p: o.param_groups[0].update(maximize=True),
    "amsgrad": lambda o, p: amsgrad(o),
    "decoupled": lambda o, p: o.param_groups[0].update(decoupled_weight_decay=True, weight_decay=0.5),
    "group": lambda o, p: o.add_param_group({"params": parameters(seed=5), "lr": 0.01}),
    "order": lambda o, p: o.param_groups[0]["params"].reverse(),
}


def amsgrad(optimizer: Any) -> None:
    optimizer.param_groups[0]["amsgrad"] = True
    for p, state in optimizer.state.items():
        state["max_exp_avg_sq"] = torch.zeros_like(p, requires_grad=False)


@pytest.mark.parametrize("kind", MOVES)
def test_steps_follow_what_moves(kind: str, reader: Any) -> None:
    if kind == "decoupled" and "decoupled_weight_decay" not in torch.optim.Adam(parameters()).defaults:
        pytest.skip("Adam of this PyTorch has no decoupled_weight_decay")
    mine, theirs = parameters(), parameters()
    pairs = [(ours.Adam(mine, lr=0.1), mine), (torch.optim.Adam(theirs, lr=0.1, foreach=False), theirs)]
    for t in range(6):
        for optimizer, params in pairs:
            if t == 3:
                MOVES[kind](optimizer, params[0])
            give_gradients([p for group in optimizer.param_groups for p in group["params"]], t)
            optimizer.step()
        assert_same(pairs[0][0], mine, pairs[1][0], theirs, f"step {t}")
    assert pairs[0][0].kernel_steps == 6


def test_memory_that_is_freed_is_not_written() -> None:
    (p,) = parameters(shapes=[(1 << 20,)])
    optimizer = ours.Adam([p])
    for t in range(5):
        p.data = torch.full((1 << 20,), float(t))  # the memory before goes back to the system
        give_gradients([p], t)
        optimizer.step()
        assert (p.detach() - t).abs().max() < 0.01


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_dense_layouts_run_in_place(layout: Any, reader: Any) -> None:
    convolutions = [torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    convolutions[1].load_state_dict(convolutions[0].state_dict())
    params = [[*c.parameters()] for c in convolutions]
    mine, other = ours.Adam(params[0]), torch.optim.Adam(params[1], foreach=False)
    for t in range(3):
        for of, optimizer in zip(params, (mine, other), strict=True):
            give_gradients(of, t)
            of[0].grad = of[0].grad.contiguous(memory_format=layout)
            optimizer.step()
    assert_same(mine, params[0], other, params[1], "channels_last")
    assert mine.state[params[0][0]]["exp_avg"].is_contiguous(memory_format=torch.channels_last)


@with_grad_dtype
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_in_other_formats_are_read(dtype: Any, reader: Any) -> None:
    ps = [torch.nn.Parameter(UNEVEN.clone()) for _ in range(2)]
    mine, same = ours.Adam(ps[:1], lr=0.1), ours.Adam(ps[1:], lr=0.1)
    ps[0].grad_dtype = dtype
    gradient = torch.randn(3, 4).to(dtype)
    for _ in range(3):
        ps[0].grad, ps[1].grad = gradient, gradient.float()
        mine.step()
        same.step()
    assert torch.equal(ps[0], ps[1]) or dtype is torch.float64
    assert_same(mine, ps[:1], same, ps[1:], str(dtype))
