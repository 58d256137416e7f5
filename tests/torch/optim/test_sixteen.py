"""Parameters of 16 bits: with a master they train as in float32, bit for bit; without, as Variables do."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastvar as fv
import fastvar.torch
import fastvar.torch.optim as ours
from fastvar.checkpoint.pytorch import as_array
from fastvar.kernels.tensors import Reader
from fastvar.torch.optim import planning, reading
from tests.support.torch_sixteen import (
    DTYPES,
    EVERY,
    KEPT,
    assert_masters_are,
    assert_same,
    copies,
    every_dtype,
    make,
    numbers,
    parameters,
    rounded,
    step,
)

FORMATS = [None, "bfloat16", "8bit"]
every_class = pytest.mark.parametrize("name", EVERY)
few = pytest.mark.parametrize("name", ["Adam", "Lamb"])  # of each way to run a step


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


# With a master.


@every_class
@every_dtype
def test_with_a_master_steps_are_those_of_float32(name: str, dtype: Any) -> None:
    params = parameters(dtype, name)
    expected = copies(params)
    optimizer, other = make(name, params), make(name, expected)
    step(optimizer, params)
    step(other, expected, dtype=dtype)
    assert_masters_are(optimizer, params, expected)
    for p, q in zip(params, expected, strict=True):
        assert optimizer.state[p].keys() - {"master"} == other.state[q].keys()
        for key, x in other.state[q].items():
            assert optimizer.state[p][key].dtype == x.dtype
            assert torch.equal(optimizer.state[p][key], x), key


@few
@every_dtype
@pytest.mark.parametrize("slot_dtype", FORMATS)
def test_slots_can_have_fewer_bits_too(name: str, dtype: Any, slot_dtype: Any) -> None:
    keywords = {"slot_dtype": slot_dtype, "slot_dtype_min_size": 0, "max_grad_norm": 1.0, "nonfinite": "raise"}
    params = parameters(dtype)
    expected = copies(params)
    optimizer, other = make(name, params, **keywords), make(name, expected, **keywords)
    step(optimizer, params)
    step(other, expected, dtype=dtype)
    assert_masters_are(optimizer, params, expected)
    assert optimizer.grad_norm == other.grad_norm


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
@every_dtype
def test_sparse_gradients(name: str, dtype: Any) -> None:
    params = parameters(dtype)
    expected = copies(params)
    optimizer, other = make(name, params), make(name, expected)
    for t in range(3):
        for p, q in zip(params, expected, strict=True):
            rows = torch.tensor([[t, 1, t + 1][: 1 + t]])
            values = torch.randn(rows.shape[1], *p.shape[1:]).to(dtype) if p.ndim == 2 else None
            for of in (p, q):
                dense = torch.full(of.shape, 0.1, dtype=dtype).to(of.dtype)
                sparse = None if values is None else values.to(of.dtype)
                of.grad = (
                    dense
                    if sparse is None
                    else torch.sparse_coo_tensor(rows, sparse, of.shape, check_invariants=True)
                )
        optimizer.step()
        other.step()
    assert_masters_are(optimizer, params, expected)


@every_dtype
def test_sparse_adam(dtype: Any) -> None:
    tables = [torch.nn.Parameter(torch.ones(9, 4, dtype=of)) for of in (dtype, torch.float32)]
    optimizers = [ours.SparseAdam([table], lr=0.01) for table in tables]
    for t in range(3):
        for table, optimizer in zip(tables, optimizers, strict=True):
            values = torch.full((2, 4), 0.25 + t, dtype=table.dtype)
            rows = torch.tensor([[t, 8]])
            table.grad = torch.sparse_coo_tensor(rows, values, table.shape, check_invariants=True)
            optimizer.step()
    assert_masters_are(optimizers[0], tables[:1], tables[1:])
    assert (tables[0][8] != 1).all()
    assert (tables[0][5] == 1).all()


@few
@every_dtype
def test_averages_are_those_of_float32(name: str, dtype: Any) -> None:
    params = parameters(dtype)
    expected = copies(params)
    optimizer, other = make(name, params, ema=0.75), make(name, expected, ema=0.75)
    step(optimizer, params)
    step(other, expected, dtype=dtype)
    with optimizer.average_parameters(), other.average_parameters():
        for p, q in zip(params, expected, strict=True):
            assert torch.equal(p, q.to(dtype))
    assert_masters_are(optimizer, params, expected)
    optimizer.copy_averages()
    other.copy_averages()
    assert_masters_are(optimizer, params, expected)


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="no scaler for the CPU in this PyTorch")
def test_a_scaler_works_as_with_pytorch() -> None:
    p, q = (torch.nn.Parameter(torch.ones(300, dtype=of)) for of in (torch.float16, torch.float32))
    for fused in (False, True):
        optimizers = [ours.Adam([of], lr=0.01, fused=fused) for of in (p, q)]
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=1000)
        for factor in (1.0, 1e4, 2.0):  # the second overflows
            for of, optimizer in zip((p, q), optimizers, strict=True):
                scaler.scale(torch.zeros(()))
                of.grad = (torch.full((300,), factor) * scaler.get_scale()).half().to(of.dtype)
                if fused or of is q:
                    scaler.step(optimizer)
                else:
                    with pytest.raises(ValueError, match="unscale FP16 gradients"):
                        scaler.step(optimizer)
            scaler.update()
        if fused:
            assert optimizers[0].kernel_steps == 2
            assert torch.equal(numbers(optimizers[0], p), q)
        with torch.no_grad():
            p.fill_(1), q.fill_(1)


# Beside Variables of 16 bits.


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad", "NAdam", "Adafactor", "Lion", "Lamb", "Prodigy"])
@pytest.mark.parametrize(("dtype", "master"), [(DTYPES[0], True), (DTYPES[0], False), (DTYPES[1], True)])
def test_steps_are_those_of_variables(name: str, dtype: Any, master: bool) -> None:
    params = parameters(dtype)[:2]
    variables = [fv.Variable(as_array(p).copy(), name=f"p{i}") for i, p in enumerate(params)]
    options: dict[str, Any] = {"slot_dtype": "bfloat16", "slot_dtype_min_size": 100, "master": master, "seed": 3}
    native: Any
    if hasattr(fastvar.torch, name):
        own = {"initial_accumulator_value": 0.1} if name == "Adagrad" else {}
        optimizer = make(name, params, **own, **options)
        native = getattr(fastvar.torch, name)(variables, lr=0.01, **own, **options)
    else:
        optimizer, native = make(name, params, **options), getattr(fv.optimizers, name)(0.01, **options)
        native.build(variables)
    for t in range(3):
        step(optimizer, params, t, 1)
        native.apply([as_array(p.grad) for p in params])
    for p, v in zip(params, variables, strict=True):
        assert as_array(p).tobytes() == v.value.tobytes()
        assert ("master" in optimizer.state[p]) == master
        if master:
            assert numbers(optimizer, p).numpy().tobytes() == np.asarray(v.master).tobytes()


@few
def test_without_a_master_seeds_decide(name: str) -> None:
    results = []
    for seed in (0, 0, 1):
        params = parameters(torch.bfloat16)
        step(make(name, params, master=False, seed=seed), params)
        results.append(params)
    for p, q, r in zip(*results, strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, r)


# Groups, and changes of `master`.


@few
def test_groups_have_their_own_master(name: str) -> None:
    """Every parameter ends with the bits that it has if all have its `master` and format."""
    ends = []
    for keywords in ({"master": False}, {"slot_dtype": "8bit"}, {}):
        params = parameters(torch.bfloat16)[:3]
        step(make(name, params, seed=3, **keywords), params)
        ends.append(params)
    params = parameters(torch.bfloat16)[:3]
    own: list[dict[str, Any]] = [{"master": False}, {"slot_dtype": "8bit"}, {}]
    optimizer = make(name, [{"params": [p], **of} for p, of in zip(params, own, strict=True)], seed=3)
    step(optimizer, params)
    for k, p in enumerate(params):
        assert torch.equal(p, ends[k][k])
        assert ("master" in optimizer.state[p]) == (k != 0)
    with pytest.raises(TypeError, match=f"^{name}: master must be"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "master": "no"})


@few
def test_master_can_change_between_steps(name: str) -> None:
    params = parameters(torch.bfloat16)
    optimizer = make(name, params, master=False)
    step(optimizer, params)
    optimizer.master = True
    expected = copies(params)
    other = make(name, expected)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    step(optimizer, params, 3)
    step(other, expected, 3, dtype=torch.bfloat16)
    assert_masters_are(optimizer, params, expected)
    optimizer.master = False
    step(optimizer, params, 6, 1)
    assert not any("master" in state for state in optimizer.state.values())


@every_dtype
def test_a_network_can_change_its_dtype(dtype: Any) -> None:
    params = parameters(dtype)
    optimizer = make("Adam", params)
    step(optimizer, params)
    for p in params:
        p.data = p.data.float()
        p.grad = None
    step(optimizer, params, 3, 1)
    assert not any("master" in state for state in optimizer.state.values())
    expected = copies(params)
    other = make("Adam", expected)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for p, q in zip(params, expected, strict=True):
        p.data = p.data.to(dtype)
        p.grad = None
        with torch.no_grad():
            q.copy_(p)
    step(optimizer, params, 4)
    step(other, expected, 4, dtype=dtype)
    assert_masters_are(optimizer, params, expected)


# Copies, and states from files and from PyTorch.


@pytest.mark.parametrize("name", ["Adam", "NAdam", "ASGD", "Adagrad", "Adafactor", "ScheduleFreeAdamW", "Prodigy"])
@pytest.mark.parametrize(("dtype", "master"), [(DTYPES[0], True), (DTYPES[0], False), (DTYPES[1], True)])
def test_a_loaded_state_continues_with_the_same_bits(name: str, dtype: Any, master: bool) -> None:
    params = parameters(dtype, name)
    optimizer = make(name, params, slot_dtype="bfloat16", master=master, seed=5, ema=0.9)
    step(optimizer, params)
    state, values = through_a_file((optimizer.state_dict(), [p.detach() for p in params]))
    twins = [torch.nn.Parameter(x) for x in values]
    other = make(name, twins)
    other.load_state_dict(state)
    assert (other.master, other.seed) == (master, 5)
    assert_same([(optimizer, params), (other, twins)])
    copied, copied_params = copy.deepcopy((optimizer, params))
    pickled, pickled_params = pickle.loads(pickle.dumps((optimizer, params)))
    pairs = [(optimizer, params), (other, twins), (copied, copied_params), (pickled, pickled_params)]
    for each, of in pairs:
        step(each, of, 3, 2)
    assert_same(pairs)


@few
@every_dtype
def test_checkpoints_continue_with_the_same_bits(name: str, dtype: Any, tmp_path: Path) -> None:
    def begun() -> tuple[Any, Any, list[Any]]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 2), torch.nn.Linear(70, 80)).to(dtype)
        net.to(memory_format=torch.channels_last)
        return net, make(name, [*net.named_parameters()]), [*net.parameters()]

    net, optimizer, params = begun()
    step(optimizer, params)
    fv.Checkpoint(net=net, optimizer=optimizer).save(tmp_path / "a.ckpt")
    again, other, twins = begun()
    fv.Checkpoint(net=again, optimizer=other).restore(tmp_path / "a.ckpt")
    step(optimizer, params, 3)
    step(other, twins, 3)
    assert_same([(optimizer, params), (other, twins)])


@pytest.mark.parametrize("name", ["Adam", "NAdam", "ASGD", "SGD", "Adagrad", "Adafactor"])
@every_dtype
def test_states_of_pytorch_are_loaded(name: str, dtype: Any) -> None:
    params = parameters(dtype)
    theirs = getattr(torch.optim, name)(params, lr=0.01)
    step(theirs, params)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    expected = copies(params)
    optimizer, other = make(name, twins), make(name, expected)
    state = theirs.state_dict()
    optimizer.load_state_dict(state)
    other.load_state_dict(state)
    step(optimizer, twins, 3)
    step(other, expected, 3, dtype=dtype)
    assert_masters_are(optimizer, twins, expected)
    theirs.load_state_dict(optimizer.state_dict())
    step(theirs, params, 6, 1)


def test_states_of_another_dtype_are_loaded() -> None:
    wide, params = parameters(torch.float64), parameters(torch.bfloat16)
    old, optimizer = make("Adam", wide, slot_dtype="8bit"), make("Adam", params)
    step(old, wide)
    optimizer.load_state_dict(old.state_dict())
    optimizer.slot_dtype = None
    step(optimizer, params, 3)
    assert all(optimizer.state[p]["exp_avg"].dtype is torch.float32 for p in params)
    narrow = copies(params)
    other = make("Adam", narrow)
    other.load_state_dict(optimizer.state_dict())
    step(other, narrow, 6, 1)
    assert not any("master" in state for state in other.state.values())


# What is seen, and what is refused.


@few
@every_dtype
@pytest.mark.parametrize("exchange", [False, True], ids=["methods", "dlpack"])
def test_replaced_and_moved_masters_are_seen(name: str, dtype: Any, exchange: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(planning, "READER", Reader(reading.CLASSES, torch.strided, exchange))
    params, twins = parameters(dtype), parameters(dtype)
    optimizer, other = make(name, params), make(name, twins)
    for t in range(4):
        step(optimizer, params, t, 1)
        step(other, twins, t, 1)
        state = optimizer.state[params[t]]
        if t % 2:
            state["master"] = state["master"].clone(memory_format=torch.contiguous_format)
        else:
            state["master"].data = state["master"].data.clone()
    step(optimizer, params, 4, 1)
    step(other, twins, 4, 1)
    assert_same([(optimizer, params), (other, twins)])


@few
@every_dtype
def test_a_skipped_step_changes_nothing(name: str, dtype: Any) -> None:
    params, twins = parameters(dtype), parameters(dtype)
    optimizer, other = make(name, params, nonfinite="skip"), make(name, twins, nonfinite="skip")
    step(optimizer, params)
    step(other, twins)
    for p in params:
        p.grad = torch.full_like(p, torch.inf, requires_grad=False)
    optimizer.step()
    assert optimizer.skipped == 1
    assert_same([(optimizer, params), (other, twins)])


BAD: dict[str, tuple[Callable[[Any], Any], str]] = {
    "shape": (lambda rest: rest[:3], "master of parameter 1 must be a dense torch.* tensor of shape .70,."),
    "dtype": (
        lambda rest: rest.long(),
        "master of parameter 1 must be .* got torch.int64.* begins at the weights",
    ),
    "none": (lambda rest: [1], "master of parameter 1 must be .* got list"),
}


@pytest.mark.parametrize("kind", BAD)
@every_dtype
def test_a_bad_master_is_an_error_that_changes_nothing(kind: str, dtype: Any) -> None:
    params = parameters(dtype)
    optimizer = make("Adam", params)
    step(optimizer, params)
    change, message = BAD[kind]
    state = optimizer.state[params[1]]
    state["master"] = change(state["master"])
    before = [p.detach().clone() for p in params]
    with pytest.raises(TypeError, match=message):
        step(optimizer, params, 3, 1)
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert ours.explain(optimizer).refused
    del state["master"]
    step(optimizer, params, 4, 1)
    assert optimizer.state[params[1]]["master"].dtype is KEPT[dtype]


def test_memory_must_not_be_shared() -> None:
    params = parameters(torch.bfloat16)
    optimizer = make("Adam", params)
    step(optimizer, params)
    optimizer.state[params[1]]["master"].data = params[1].detach().view(torch.int16)
    with pytest.raises(ValueError, match="Adam: parameter 1 and Adam: parameter 1 must not share memory"):
        step(optimizer, params, 3, 1)


@few
def test_float16_needs_a_master(name: str) -> None:
    params = parameters(torch.float16)
    optimizer = make(name, params, master=False)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=f"^{name}: parameter 0 is float16, which needs master=True$"):
        step(optimizer, params)
    assert ours.explain(optimizer).refused == [f"{name}: parameter 0 is float16, which needs master=True"]
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert not any(optimizer.state.values())


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_flags_of_pytorch_change_nothing(options: dict[str, Any]) -> None:
    params, twins = parameters(torch.bfloat16), parameters(torch.bfloat16)
    optimizer, other = make("AdamW", params, **options), make("AdamW", twins)
    step(optimizer, params)
    step(other, twins)
    assert_same([(optimizer, params), (other, twins)])
    explained = ours.explain(make("AdamW", params, master=False))
    assert (explained.refused, explained.keywords) == ([], {"master": False})


def test_a_step_smaller_than_16_bits_is_not_lost() -> None:
    layer = torch.nn.Linear(3, 2, bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(layer.weight)
    optimizer = ours.SGD(layer.parameters(), lr=1e-4)
    for _ in range(100):
        optimizer.zero_grad()
        layer(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    assert torch.allclose(numbers(optimizer, layer.weight), torch.tensor(0.99))
    assert torch.equal(layer.weight, rounded(numbers(optimizer, layer.weight), torch.bfloat16))
