"""`slot_dtype` of `fastvar.torch.optim`: the same bits as with Variables, kept by loading and copying."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastvar as fv
import fastvar.torch
from fastvar.kernels.numpy_formats import decode_codes
from fastvar.torch import optim
from fastvar.torch.optim import slot_formats

SHAPES = [(40, 131), (70,), (8, 4, 16, 16)]
FORMATS = ["bfloat16", "8bit"]
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "RMSprop": {"centered": True, "momentum": 0.5}}
CLASSES = ["ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lamb", "Lion", "NAdam", "Prodigy", "RAdam"]
CLASSES += ["RMSprop", "Rprop", "SGD"]
every_class = pytest.mark.parametrize("name", CLASSES)
every_format = pytest.mark.parametrize("slot_dtype", FORMATS)


def parameters(dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [torch.nn.Parameter(x) for x in [*drawn[:2], drawn[2].to(memory_format=torch.channels_last)]]


def made(name: str, params: list[Any], **keywords: Any) -> Any:
    return getattr(optim, name)(params, lr=0.01, **OPTIONS.get(name, {}), **keywords)


def step(optimizer: Any, params: list[Any], start: int, count: int = 3) -> None:
    for t in range(start, start + count):
        generator = torch.Generator().manual_seed(t)
        for p in params:
            drawn = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.grad = torch.empty_like(p).copy_(drawn)
        optimizer.step()


def dtypes_of(state: dict[str, Any]) -> dict[str, Any]:
    return {name: x.dtype for name, x in state.items() if isinstance(x, torch.Tensor) and x.ndim}


def assert_same(params: list[Any], others: list[Any]) -> None:
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


@every_class
@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loaded_state_continues_with_the_same_bits(name: str, slot_dtype: Any, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = made(name, params, slot_dtype=slot_dtype, seed=5)
    step(optimizer, params, 0)
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), [p.detach() for p in params]), file)
    file.seek(0)
    state, values = torch.load(file)
    twins = [torch.nn.Parameter(x) for x in values]
    other = made(name, twins)
    other.load_state_dict(state)
    assert (other.slot_dtype, other.seed) == (slot_dtype, 5)
    for p, q in zip(params, twins, strict=True):
        assert dtypes_of(optimizer.state[p]) == dtypes_of(other.state[q])
    copied, copies = copy.deepcopy((optimizer, params))
    step(optimizer, params, 3)
    step(other, twins, 3)
    step(copied, copies, 3)
    assert_same(params, twins)
    assert_same(params, copies)


@every_class
@every_format
def test_state_has_the_formats(name: str, slot_dtype: Any) -> None:
    params = parameters()
    optimizer = made(name, params, slot_dtype=slot_dtype)
    step(optimizer, params, 0, 1)
    large, small = optimizer.state[params[0]], optimizer.state[params[1]]
    kept = [x.dtype for key, x in small.items() if x.ndim and key != "step"]
    assert {*kept} == {torch.float32}  # it has fewer than 4096 elements
    dtypes = {x.dtype for x in large.values() if x.ndim}
    if name in ("ASGD", "Rprop"):  # all their slots stay exact
        assert dtypes == {torch.float32}
    elif slot_dtype == "bfloat16":
        assert torch.bfloat16 in dtypes
    else:
        codes = [key for key in large if key.endswith("_codes")]
        assert codes
        assert all(large[key].dtype is torch.uint8 and large[key].shape == SHAPES[0] for key in codes)
        assert all(large[key.replace("_codes", "_scales")].shape == (21,) for key in codes)


@pytest.mark.parametrize("name", ["Adam", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "Adadelta"])
@every_format
def test_steps_are_those_of_variables(name: str, slot_dtype: Any) -> None:
    params = parameters()[:2]
    optimizer = made(name, params, slot_dtype=slot_dtype, slot_dtype_min_size=1)
    variables = [fv.Variable(p.detach().numpy().copy(), name=f"p{i}") for i, p in enumerate(params)]
    options = {"lr": 0.01, **OPTIONS.get(name, {})}
    native = getattr(fastvar.torch, name)(variables, **options, slot_dtype=slot_dtype, slot_dtype_min_size=1)
    for t in range(3):
        step(optimizer, params, t, 1)
        native.apply([p.grad.numpy() for p in params])
    for p, v in zip(params, variables, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), v.value)


@pytest.mark.parametrize("before", [None, *FORMATS])
@pytest.mark.parametrize("after", [None, *FORMATS])
@pytest.mark.parametrize("name", ["Adam", "Lamb"])
def test_setting_slot_dtype_converts_the_slots(before: Any, after: Any, name: str) -> None:
    params = parameters()
    optimizer = made(name, params, slot_dtype=before)
    step(optimizer, params, 0)
    slot = "exp_avg_sq" if name == "Adam" else "velocity"
    old = [decoded(optimizer, p, slot) for p in params]
    optimizer.slot_dtype = after
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    # To nearest when it is converted, and stochastically in the step: 1.5 units of the last place.
    bound = {None: 1e-6, "bfloat16": 3 * 2.0**-8, "8bit": 0.2}[after]
    for p, values in zip(params, old, strict=True):
        assert torch.allclose(decoded(optimizer, p, slot), values * 0.999, rtol=bound, atol=1e-6)
        names = {key for key in optimizer.state[p] if key.startswith(slot)}
        assert len(names) == (2 if after == "8bit" and p.numel() >= 4096 else 1)


def decoded(optimizer: Any, p: Any, slot: str) -> Any:
    found = slot_formats.found_in(optimizer.state[p], slot)
    if isinstance(found, tuple):
        values = torch.empty_like(p).detach()
        stored = slot_formats.memory_of(slot_formats.flat(found[0]), found[1])
        slot_formats.flat(values)[...] = decode_codes(stored)
        return values
    return found.float().clone()


def test_pytorch_loads_bfloat16_and_refuses_codes() -> None:
    for slot_dtype in FORMATS:
        params = parameters()
        optimizer = made("Adam", params, slot_dtype=slot_dtype)
        step(optimizer, params, 0)
        theirs = torch.optim.Adam(params, lr=0.01)
        theirs.load_state_dict(optimizer.state_dict())
        if slot_dtype == "bfloat16":
            theirs.step()
            assert theirs.state[params[0]]["exp_avg"].dtype is torch.float32
        else:
            with pytest.raises(KeyError, match="exp_avg"):
                theirs.step()


def test_replaced_codes_and_scales_are_seen() -> None:
    params, twins = parameters(), parameters()
    optimizer, other = (made("Adam", of, slot_dtype="8bit") for of in (params, twins))
    step(optimizer, params, 0)
    step(other, twins, 0)
    for name in ("exp_avg_codes", "exp_avg_scales"):
        state = optimizer.state[params[0]]
        state[name] = state[name].clone()
    state["exp_avg_sq_scales"].data = state["exp_avg_sq_scales"].data.clone()
    step(optimizer, params, 3)
    step(other, twins, 3)
    assert_same(params, twins)


def test_bad_codes_are_an_error_that_changes_nothing() -> None:
    params = parameters()
    optimizer = made("Adam", params, slot_dtype="8bit")
    step(optimizer, params, 0)
    optimizer.state[params[0]]["exp_avg_scales"] = torch.zeros(3)
    before = [p.detach().clone() for p in params]
    with pytest.raises(TypeError, match="scales of slot exp_avg of parameter 0 must be a tensor"):
        step(optimizer, params, 3, 1)
    assert_same(params, before)


def test_sparse_gradients_update_rows() -> None:
    table = torch.nn.Parameter(torch.randn(64, 256, generator=torch.Generator().manual_seed(1)))
    narrow = torch.nn.Parameter(torch.zeros(64, 100))
    optimizer = optim.Adagrad([table], lr=0.1, slot_dtype="8bit")
    before = table.detach().clone()
    rows, values = torch.tensor([[3, 9]]), torch.ones(2, 256)
    table.grad = torch.sparse_coo_tensor(rows, values, (64, 256), check_invariants=True)
    optimizer.step()
    changed = (table != before).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 9]
    other = optim.Adagrad([narrow], lr=0.1, slot_dtype="8bit")
    narrow.grad = torch.sparse_coo_tensor(rows, torch.ones(2, 100), (64, 100), check_invariants=True)
    with pytest.raises(ValueError, match="rows must have a multiple of 256 elements, got 100"):
        other.step()


def test_seeds_differ() -> None:
    results = []
    for seed in (0, 0, 1):
        params = parameters()
        optimizer = made("Adam", params, slot_dtype="bfloat16", seed=seed)
        step(optimizer, params, 0)
        results.append(params)
    assert_same(results[0], results[1])
    assert not torch.equal(results[0][0], results[2][0])


@every_format
@pytest.mark.parametrize("name", ["Adam", "Lamb"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by_group", [False, True], ids=["all", "groups"])
def test_checkpoints_continue_with_the_same_bits(
    name: str, slot_dtype: Any, dtype: torch.dtype, by_group: bool, tmp_path: Path
) -> None:
    def begun() -> tuple[Any, Any, list[Any]]:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Linear(80, 2)).to(dtype)
        keyword = {"slot_dtype": slot_dtype}
        groups = [{"params": layer.parameters(), **(keyword if by_group else {})} for layer in net]
        return net, made(name, groups, seed=4, **({} if by_group else keyword)), [*net.parameters()]

    net, optimizer, params = begun()
    step(optimizer, params, 0)
    fv.Checkpoint(net=net, optimizer=optimizer).save(tmp_path / "a.ckpt")
    again, other, twins = begun()
    fv.Checkpoint(net=again, optimizer=other).restore(tmp_path / "a.ckpt")
    step(optimizer, params, 3)
    step(other, twins, 3)
    assert_same(params, twins)


# Groups with their own format.

GROUPS = [{"slot_dtype": "8bit"}, {"slot_dtype": None}, {"slot_dtype_min_size": 1}]


def grouped(params: list[Any]) -> list[dict[str, Any]]:
    return [{"params": [p], **own} for p, own in zip(params, GROUPS, strict=True)]


def formats_in(optimizer: Any, p: Any) -> set[torch.dtype]:
    return {x.dtype for name, x in optimizer.state[p].items() if x.ndim and not name.endswith("_scales")}


@pytest.mark.parametrize("name", ["Adam", "SGD", "Lamb", "Lion", "Adagrad"])
def test_groups_have_their_own_format(name: str) -> None:
    """Every parameter ends with the bits that it has if all have its format."""
    every, ends = [*FORMATS, None], {}
    for slot_dtype in every:
        params = parameters()
        step(made(name, params, slot_dtype=slot_dtype, seed=3), params, 0)
        ends[slot_dtype] = params
    params = parameters()
    optimizer = made(name, grouped(params), slot_dtype="bfloat16", seed=3)
    step(optimizer, params, 0)
    for i, slot_dtype in enumerate(["8bit", None, "bfloat16"]):
        assert torch.equal(params[i], ends[slot_dtype][i])
    dtypes = [torch.uint8, torch.float32, torch.bfloat16]
    assert [formats_in(optimizer, p) for p in params] == [{dtype} for dtype in dtypes]


@pytest.mark.parametrize("name", ["Adam", "SGD", "Lamb"])
def test_groups_continue_from_a_state(name: str) -> None:
    params = parameters()
    optimizer = made(name, grouped(params), slot_dtype="bfloat16", seed=3)
    step(optimizer, params, 0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = made(name, [{"params": [p]} for p in twins])
    other.load_state_dict(torch.load(file))
    kept = [{key: group[key] for key in own} for group, own in zip(other.param_groups, GROUPS, strict=True)]
    assert kept == GROUPS
    copied, copies = copy.deepcopy((optimizer, params))
    for of, each in ((params, optimizer), (twins, other), (copies, copied)):
        step(each, of, 3)
    assert_same(params, twins)
    assert_same(params, copies)


@pytest.mark.parametrize("name", ["Adam", "SGD", "Lamb"])
def test_the_format_of_a_group_can_be_set_at_any_time(name: str) -> None:
    params = parameters()
    optimizer = made(name, [{"params": params[:1]}, {"params": params[1:]}])
    step(optimizer, params, 0, 1)
    for slot_dtype, dtype in (("8bit", torch.uint8), ("bfloat16", torch.bfloat16), (None, torch.float32)):
        optimizer.param_groups[0]["slot_dtype"] = slot_dtype
        step(optimizer, params, 1, 1)
        assert [formats_in(optimizer, p) for p in params] == [{dtype}, {torch.float32}, {torch.float32}]


def test_native_groups_and_groups_of_tensors_have_the_same_bits() -> None:
    params = parameters()[:2]
    own = [{"slot_dtype": "8bit"}, {"slot_dtype": "bfloat16", "slot_dtype_min_size": 0}]
    optimizer = optim.Lion([{"params": [p], **o} for p, o in zip(params, own, strict=True)], lr=0.01, seed=3)
    variables = [fv.Variable(p.detach().numpy().copy()) for p in params]
    native = fv.optimizers.Lion(0.01, seed=3)
    native.build([{"variables": [v], **o} for v, o in zip(variables, own, strict=True)])
    for t in range(3):
        step(optimizer, params, t, 1)
        native.apply([p.grad.numpy() for p in params], variables)
    for p, v in zip(params, variables, strict=True):
        assert p.detach().numpy().tobytes() == v.value.tobytes()


@pytest.mark.parametrize(("key", "value"), [("slot_dtype", "float16"), ("slot_dtype_min_size", -1)])
@pytest.mark.parametrize("name", ["Adam", "Lamb"])
def test_a_wrong_format_of_a_group_is_an_error_that_changes_nothing(name: str, key: str, value: Any) -> None:
    params = parameters()
    with pytest.raises(ValueError, match=rf"^{name}: {key} must be"):
        made(name, [{"params": params, key: value}])
    optimizer = made(name, params)
    with pytest.raises(ValueError, match=rf"^{name}: {key} must be"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], key: value})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0][key] = value
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=rf"^{name}: {key} must be"):
        step(optimizer, params, 0, 1)
    assert_same(params, before)
    assert not any(optimizer.state.values())
