"""`max_grad_norm`, `ema` and `nonfinite` beside PyTorch's own functions for these, on every class."""

from __future__ import annotations

import ast
import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastvar.torch.optim as ours
from fastvar.torch.optim import keywords
from tests.support.torch_tensors import (
    HERE,
    NAMES,
    SHAPES_OF,
    assert_close,
    assert_same,
    bytes_of,
    give_gradients,
    parameters,
    parameters_of,
    plain,
)

EVERY = [*NAMES, *ours.native.__all__]
MEASURING = [name for name in SHAPES_OF if hasattr(ours, name)]
KEYWORDS = {"max_grad_norm": 0.5, "ema": 0.75, "nonfinite": "skip"}
every_class = pytest.mark.parametrize("name", EVERY)
every_class_of_pytorch = pytest.mark.parametrize("name", NAMES)


def options_of(name: str) -> list[dict[str, Any]]:
    """Return the options with which PyTorch tests weight decay and maximization."""
    info = next(info for info in HERE if info.optim_cls.__name__ == name)
    every = [dict(given.kwargs) for given in info.optim_inputs_func(device="cpu")]
    return [{}, *(kwargs for kwargs in every if {"weight_decay", "maximize"} & kwargs.keys())]


# Clipping.


@pytest.mark.parametrize("most", [0.5, 100.0])
@pytest.mark.parametrize("name", [*NAMES, *MEASURING])
def test_clipping_is_that_of_pytorch(name: str, most: float) -> None:
    for kwargs in options_of(name):
        mine, theirs = parameters_of(name), parameters_of(name)
        groups = [{"params": mine[:2]}, {"params": mine[2:], "lr": 0.02}]
        optimizer = getattr(ours, name)(groups, **kwargs, max_grad_norm=most)
        groups = [{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.02}]
        other = getattr(torch.optim, name)(groups, **{**plain(name), **kwargs})
        for t in range(5):
            for params in (mine, theirs):
                give_gradients(params, t, missing=[t, 4])
            before = [None if p.grad is None else p.grad.clone() for p in mine]
            optimizer.step()
            norm = clip_grad_norm_(theirs, most)
            other.step()
            assert_same(optimizer, mine, other, theirs, f"{kwargs}, step {t}")
            assert abs(optimizer.grad_norm - norm.item()) <= 1e-6 * norm.item()
            for p, grad in zip(mine, before, strict=True):
                assert (p.grad is None and grad is None) or torch.equal(p.grad, grad)
        assert optimizer.kernel_steps == 5


@pytest.mark.parametrize("name", ours.native.__all__)
def test_clipping_of_other_classes_is_that_of_their_gradients(name: str) -> None:
    mine, theirs = parameters(), parameters()
    optimizer, other = getattr(ours, name)(mine, max_grad_norm=0.5), getattr(ours, name)(theirs)
    for t in range(5):
        for params in (mine, theirs):
            give_gradients(params, t)
        optimizer.step()
        clip_grad_norm_(theirs, 0.5)
        other.step()
        assert_same(optimizer, mine, other, theirs, f"step {t}")


def test_clipping_may_change_between_steps() -> None:
    mine, theirs = parameters(), parameters()
    optimizer, other = ours.SGD(mine, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    for t, most in enumerate([None, 0.5, 0.1, None]):
        optimizer.max_grad_norm = most
        for params in (mine, theirs):
            give_gradients(params, t)
        optimizer.step()
        if most is not None:
            clip_grad_norm_(theirs, most)
        other.step()
        assert_same(optimizer, mine, other, theirs, f"step {t}")


def test_norm_is_of_unscaled_gradients() -> None:
    mine, theirs = parameters(), parameters()
    optimizer = ours.Adam(mine, fused=True, max_grad_norm=0.5)
    other = torch.optim.Adam(theirs, fused=True)
    scalers = [torch.amp.GradScaler("cpu", init_scale=8.0) for _ in range(2)]
    for t in range(3):
        for each, params, scaler in zip((optimizer, other), (mine, theirs), scalers, strict=True):
            scaler.scale(torch.ones(()))
            give_gradients(params, t)
            for p in params:
                p.grad *= scaler.get_scale()
            if each is other:
                scaler.unscale_(other)
                clip_grad_norm_(theirs, 0.5)
            scaler.step(each)
            scaler.update()
        assert_same(optimizer, mine, other, theirs, f"step {t}")


def test_norm_is_right_where_squares_overflow() -> None:
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = ours.SGD([p], lr=1.0, max_grad_norm=1.0)
    p.grad = torch.full((4,), 1e200, dtype=torch.float64)
    optimizer.step()
    assert_close(p, torch.full((4,), -0.5, dtype=torch.float64), "clipped")
    assert optimizer.grad_norm == 2e200


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_clipping_of_bad_gradients_is_that_of_pytorch(bad: float) -> None:
    mine, theirs = parameters(), parameters()
    optimizer, other = ours.SGD(mine, lr=0.1, max_grad_norm=0.5), torch.optim.SGD(theirs, lr=0.1)
    for params in (mine, theirs):
        give_gradients(params, 0)
        params[0].grad[0, 0] = bad
    optimizer.step()
    clip_grad_norm_(theirs, 0.5)
    other.step()
    for p, q in zip(mine, theirs, strict=True):
        assert torch.equal(p.isfinite(), q.isfinite())


# The guard.


@pytest.mark.parametrize("most", [None, 0.5])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", [*EVERY, *MEASURING])
def test_skipped_steps_change_nothing(name: str, bad: float, most: float | None) -> None:
    params, others = parameters_of(name), parameters_of(name)
    optimizer = getattr(ours, name)(params, nonfinite="skip", ema=0.5, max_grad_norm=most)
    other = getattr(ours, name)(others, ema=0.5, max_grad_norm=most)
    begun = bytes_of(optimizer, params)
    for t in range(4):
        before = bytes_of(optimizer, params)
        give_gradients(params, 10 + t)
        params[-2].grad.view(-1)[-1] = bad
        versions = [p._version for p in params]
        optimizer.step()
        assert bytes_of(optimizer, params) == before
        assert [p._version for p in params] == versions
        if t == 0:
            assert before == begun
        for each, of in ((optimizer, params), (other, others)):
            give_gradients(of, t)
            each.step()
        assert [p._version for p in params] == [v + 1 for v in versions]
    assert optimizer.skipped == optimizer.kernel_steps == 4
    assert_same(optimizer, params, other, others, "skipped")
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("most", [None, 0.5])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@every_class
def test_errors_of_bad_gradients_name_the_parameters(name: str, bad: float, most: float | None) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = getattr(ours, name)(net.named_parameters(), nonfinite="raise", max_grad_norm=most)
    params = [*net.parameters()]
    for t in range(2):
        give_gradients(params, t)
        params[0].grad[0, 0] = params[3].grad[1] = bad
        before, versions = bytes_of(optimizer, params), [p._version for p in params]
        with pytest.raises(ValueError, match=rf"^{name}: gradient of '?0\.weight'?, '?1\.bias'? must be finite$"):
            optimizer.step()
        assert bytes_of(optimizer, params) == before
        assert [p._version for p in params] == versions
        give_gradients(params, t)
        optimizer.step()
    assert optimizer.kernel_steps == 2
    assert optimizer.skipped == 0


def test_errors_of_bad_results_name_the_parameter() -> None:
    net = torch.nn.Linear(3, 4)
    optimizer = ours.SGD(net.named_parameters(), lr=10.0, nonfinite="raise")
    give_gradients([*net.parameters()], 0)
    net.bias.grad.fill_(1e38)
    with pytest.raises(ValueError, match=r"^SGD: what the step makes of bias must be finite$"):
        optimizer.step()


def test_a_number_that_is_bad_already_does_not_stop_the_others() -> None:
    params = parameters()
    with torch.no_grad():
        params[0][0, 0] = torch.nan
    optimizer = ours.Adam(params, nonfinite="raise")
    give_gradients(params, 0)
    optimizer.step()
    assert optimizer.kernel_steps == 1


def test_an_interrupt_before_the_first_update_leaves_no_state(monkeypatch: Any) -> None:
    commit = ours.planning.TensorPlan._commit

    def interrupted(plan: Any, optimizer: Any) -> Any:
        commit(plan, optimizer)
        assert optimizer.state
        raise KeyboardInterrupt

    params = parameters()
    optimizer = ours.Adam(params, ema=0.5)
    give_gradients(params, 0)
    with monkeypatch.context() as patch:
        patch.setattr(ours.planning.TensorPlan, "_commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert not optimizer.state
    optimizer.step()
    assert all(torch.equal(optimizer.state[p]["ema"], p) for p in params)


# Averages.


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


# State.


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def run(optimizer: Any, params: list[Any], steps: range) -> None:
    for t in steps:
        give_gradients(params, t)
        optimizer.step()


def assert_equal(params: list[Any], optimizer: Any, others: list[Any], other: Any) -> None:
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["ema"], other.state[q]["ema"])
    for name, value in KEYWORDS.items():
        assert getattr(other, name) == getattr(optimizer, name) == value
    assert other.skipped == optimizer.skipped == 1


@pytest.mark.parametrize("how", ["state_dict", "through PyTorch", "pickle", "deepcopy"])
@every_class
def test_keywords_are_kept(name: str, how: str) -> None:
    params = parameters()
    optimizer = getattr(ours, name)(params, **KEYWORDS)
    run(optimizer, params, range(2))
    give_gradients(params, 2)
    params[0].grad[0, 0] = torch.nan
    optimizer.step()
    if how == "pickle":
        other, others = pickle.loads(pickle.dumps((optimizer, params)))
    elif how == "deepcopy":
        other, others = copy.deepcopy((optimizer, params))
    else:
        others = copy.deepcopy(params)
        other = getattr(ours, name)(others)
        state = through_a_file(optimizer.state_dict())
        assert state["fastvar"] == {**KEYWORDS, "skipped": 1}
        if how == "through PyTorch" and name in NAMES:
            theirs = getattr(torch.optim, name)(copy.deepcopy(params))
            theirs.load_state_dict(state)
            state = through_a_file(theirs.state_dict()) | {"fastvar": state["fastvar"]}
        other.load_state_dict(state)
    for each, of in ((optimizer, params), (other, others)):
        run(each, of, range(3, 5))
    assert_equal(params, optimizer, others, other)


@every_class_of_pytorch
def test_state_of_pytorch_leaves_the_keywords(name: str) -> None:
    params = parameters()
    theirs = getattr(torch.optim, name)(params)
    run(theirs, params, range(2))
    optimizer = getattr(ours, name)(params, **KEYWORDS)
    optimizer.load_state_dict(theirs.state_dict())
    assert {name: getattr(optimizer, name) for name in KEYWORDS} == KEYWORDS
    assert "fastvar" not in getattr(ours, name)(params).state_dict()
    run(optimizer, params, range(2, 4))
    assert optimizer.kernel_steps == 2


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"max_grad_norm": 0.1, "ema": 2.0}, "Adam: ema must be > 0 and < 1, got 2.0"),
        ({"max_grad_norm": 0.1, "later": 1}, "Adam: unknown 'later' in state_dict\\['fastvar'\\]"),
    ],
)
def test_bad_keywords_in_a_state_change_nothing(own: Any, message: str) -> None:
    params = parameters()
    optimizer = ours.Adam(params, **KEYWORDS)
    run(optimizer, params, range(2))
    state = copy.deepcopy(optimizer.state_dict()) | {"fastvar": own}
    run(optimizer, params, range(2, 3))
    before = bytes_of(optimizer, params)
    with pytest.raises(ValueError, match=f"^{message}$"):
        optimizer.load_state_dict(state)
    assert bytes_of(optimizer, params) == before
    assert {name: getattr(optimizer, name) for name in KEYWORDS} == KEYWORDS


# Arguments.

WRONG = [
    ("max_grad_norm", 0, ValueError, "must be > 0, got 0"),
    ("max_grad_norm", "1", TypeError, "must be a real number, got '1'"),
    ("max_grad_norm", torch.inf, ValueError, "must be finite, got inf"),
    ("ema", 1.0, ValueError, "must be > 0 and < 1, got 1.0"),
    ("ema", True, TypeError, "must be a real number, got True"),
    ("nonfinite", "warn", ValueError, "must be 'ignore' or 'skip' or 'raise', got 'warn'"),
    ("nonfinite", None, TypeError, "must be 'ignore' or 'skip' or 'raise', got None"),
]


@pytest.mark.parametrize(("keyword", "value", "error", "message"), WRONG)
@every_class
def test_wrong_values_are_refused(name: str, keyword: str, value: Any, error: Any, message: str) -> None:
    params = parameters()
    with pytest.raises(error, match=f"^{name}: {keyword} {message}$"):
        getattr(ours, name)(params, **{keyword: value})
    optimizer = getattr(ours, name)(params, **KEYWORDS)
    with pytest.raises(error, match=f"^{name}: {keyword} {message}$"):
        setattr(optimizer, keyword, value)
    assert {name: getattr(optimizer, name) for name in KEYWORDS} == KEYWORDS


@every_class
def test_unknown_keywords_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_gradnorm'"):
        getattr(ours, name)(parameters(), max_gradnorm=1.0)


@every_class
def test_keywords_are_in_signature_and_repr_only(name: str) -> None:
    signature = inspect.signature(getattr(ours, name))
    own = [*signature.parameters.values()][-3:]
    assert [(p.name, p.kind, p.default) for p in own] == [
        ("max_grad_norm", inspect.Parameter.KEYWORD_ONLY, None),
        ("ema", inspect.Parameter.KEYWORD_ONLY, None),
        ("nonfinite", inspect.Parameter.KEYWORD_ONLY, "ignore"),
    ]
    if name in NAMES:
        theirs = inspect.signature(getattr(torch.optim, name))
        assert [*signature.parameters.values()][:-3] == [*theirs.parameters.values()]
        plain = getattr(torch.optim, name)(parameters())
        assert repr(getattr(ours, name)(parameters())) == repr(plain)
    optimizer = getattr(ours, name)(parameters(), **KEYWORDS)
    assert "Keywords\n    max_grad_norm: 0.5\n    ema: 0.75\n    nonfinite: skip\n)" in repr(optimizer)
    assert not KEYWORDS.keys() & optimizer.defaults.keys()
    assert not KEYWORDS.keys() & optimizer.param_groups[0].keys()


def test_subclasses_have_their_own_signature() -> None:
    class Mine(ours.Adam):
        def __init__(self, net: Any, rate: float = 0.5) -> None:
            super().__init__(net.parameters(), lr=rate, max_grad_norm=1.0)

    class Same(ours.Lion):
        pass

    assert [*inspect.signature(Mine).parameters] == ["net", "rate"]
    assert inspect.signature(Same) == inspect.signature(ours.Lion)
    assert Mine(torch.nn.Linear(1, 1)).max_grad_norm == 1.0


@every_class_of_pytorch
def test_arguments_for_type_checkers_are_those_of_pytorch(name: str) -> None:
    tree = ast.parse(inspect.getsource(ours.classes))
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    (of_class,) = (node.body[0].args for node in found.body if isinstance(node, ast.If))
    theirs = inspect.signature(getattr(torch.optim, name)).parameters.values()
    by_name = [p.name for p in theirs if p.kind == inspect.Parameter.KEYWORD_ONLY]
    either = [p.name for p in theirs if p.name not in by_name]
    assert [arg.arg for arg in of_class.args] == ["self", *either]
    assert [arg.arg for arg in of_class.kwonlyargs] == by_name
    assert keywords.Arguments.__annotations__.keys() == KEYWORDS.keys()
