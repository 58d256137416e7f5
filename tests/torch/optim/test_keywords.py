"""`max_grad_norm`, `ema` and `nonfinite` in states, signatures and messages."""

from __future__ import annotations

import ast
import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from fastvar.torch.optim import keywords
from tests.support.torch_tensors import (
    CLASSES,
    NAMES,
    bytes_of,
    give_gradients,
    parameters,
)

KEYWORDS = {"max_grad_norm": 0.5, "ema": 0.75, "nonfinite": "skip"}
DEFAULTS = {
    **{"max_grad_norm": None, "ema": None, "nonfinite": "ignore"},
    **{"slot_dtype": None, "slot_dtype_min_size": 4096, "master": True, "seed": 0},
}
every_class = pytest.mark.parametrize("name", CLASSES)
every_class_of_pytorch = pytest.mark.parametrize("name", NAMES)


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
    own = [*signature.parameters.values()][-len(DEFAULTS) :]
    assert {p.kind for p in own} == {inspect.Parameter.KEYWORD_ONLY}
    assert {p.name: p.default for p in own} == DEFAULTS
    if name in NAMES:
        theirs = inspect.signature(getattr(torch.optim, name))
        assert [*signature.parameters.values()][: -len(DEFAULTS)] == [*theirs.parameters.values()]
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
    theirs = inspect.signature(getattr(torch.optim, name)).parameters
    by_name = [p.name for p in theirs.values() if p.kind == inspect.Parameter.KEYWORD_ONLY]
    either = [name for name in theirs if name not in by_name]
    lacks = {"decoupled_weight_decay"} - theirs.keys()  # in PyTorch 2.6
    assert [arg.arg for arg in of_class.args if arg.arg not in lacks] == ["self", *either]
    assert [arg.arg for arg in of_class.kwonlyargs if arg.arg not in lacks] == by_name
    assert keywords.Arguments.__annotations__.keys() == DEFAULTS.keys()
