"""`nonfinite="skip"` and `nonfinite="raise"`, on every class."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from tests.support.torch_tensors import (
    CLASSES,
    MEASURING,
    assert_same,
    bytes_of,
    give_gradients,
    parameters,
    parameters_of,
)

every_class = pytest.mark.parametrize("name", CLASSES)


@pytest.mark.parametrize("most", [None, 0.5])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", [*CLASSES, *MEASURING])
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
