"""Parameters that are not contiguous, of rules that take rows: as contiguous ones, and as PyTorch's steps."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch

import fastvar.torch.optim as ours
from fastvar.torch.optim.layouts import Copies
from tests.support import torch_sparse
from tests.support.torch_tensors import MEASURING, assert_same, bytes_of, give_gradients, with_grad_dtype

SPARSE = ["SGD", "Adagrad", "SparseAdam"]
KEYWORDS: list[dict[str, Any]] = [{}, {"max_grad_norm": 0.5, "ema": 0.75, "nonfinite": "skip"}]
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
every_class = pytest.mark.parametrize("name", [*MEASURING, *SPARSE])
LAYOUTS = {
    "transposed": lambda: torch.arange(12.0).reshape(3, 4).t(),
    "channels_last": lambda: torch.arange(48.0).reshape(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
    "permuted": lambda: torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
}
CASES = [(name, of) for name in (*MEASURING, *SPARSE) for of in LAYOUTS if name != "Muon" or of == "transposed"]
every_case = pytest.mark.parametrize(("name", "of"), CASES)


def parameter(of: str, contiguous: bool = False) -> Any:
    value = LAYOUTS[of]() / 8
    return torch.nn.Parameter(value.contiguous() if contiguous else value.clone())


def give(name: str, params: list[Any], t: int) -> None:
    """Give the gradients of a step; those of SGD and Adagrad are sparse at every other step."""
    if name == "SparseAdam" or (name in SPARSE and t % 2):
        torch_sparse.give_gradients(params, t)
    else:
        give_gradients(params, t)


def assert_same_bits(optimizer: Any, p: Any, other: Any, q: Any) -> None:
    assert torch.equal(p, q)
    mine, theirs = optimizer.state[p], other.state[q]
    assert mine.keys() == theirs.keys()
    for slot, x in mine.items():
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(theirs[slot])), slot


@every_case
@pytest.mark.parametrize("keywords", KEYWORDS, ids=["plain", "keywords"])
def test_bits_are_those_of_contiguous_parameters(keywords: dict[str, Any], name: str, of: str) -> None:
    p, q = parameter(of), parameter(of, contiguous=True)
    pairs = [(getattr(ours, name)([x], lr=0.1, **keywords), x) for x in (p, q)]
    strides = p.stride()
    for t in range(8):
        for optimizer, x in pairs:
            give(name, [x], t)
            versions, had = x._version, x.grad is not None
            if t == 4:
                with torch.no_grad():
                    x.mul_(0.5)  # the copy must follow
                    versions = x._version
            optimizer.step()
            assert x._version == versions + had
        assert_same_bits(*pairs[0], *pairs[1])
    assert p.stride() == strides
    assert all(x.stride() == strides for x in pairs[0][0].state[p].values() if getattr(x, "shape", 0) == p.shape)
    assert pairs[0][0].kernel_steps == pairs[1][0].kernel_steps > 5


@every_case
def test_steps_beside_pytorch(name: str, of: str) -> None:
    p, q = parameter(of), parameter(of)
    optimizer, other = getattr(ours, name)([p], lr=0.1), getattr(torch.optim, name)([q], lr=0.1)
    compare = torch_sparse.assert_same if name == "SparseAdam" else assert_same
    for t in range(8):
        for each, x in ((optimizer, p), (other, q)):
            give(name, [x], t)
            each.step()
        compare(optimizer, [p], other, [q], f"step {t}")
    assert ours.explain(optimizer).refused == []


@with_grad_dtype
@pytest.mark.parametrize("name", MEASURING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_16_bits_are_read(dtype: Any, name: str) -> None:
    results = []
    for given in (dtype, torch.float32):
        p = parameter("transposed")
        p.grad_dtype = given
        p.grad = torch.arange(12.0).reshape(3, 4).t().to(given)
        getattr(ours, name)([p]).step()
        results.append(p)
    assert torch.equal(*results)


@every_class
def test_a_skipped_step_changes_nothing(name: str) -> None:
    p = parameter("transposed")
    optimizer = getattr(ours, name)([p], lr=0.1, nonfinite="skip")
    for t in range(1, 4, 2):
        give(name, [p], t)
        p.grad = p.grad * torch.nan
        before, version = str((optimizer.state_dict()["state"], p.tolist())), p._version
        optimizer.step()
        assert (str((optimizer.state_dict()["state"], p.tolist())), p._version) == (before, version)
        give(name, [p], t)
        optimizer.step()
    assert (optimizer.kernel_steps, optimizer.skipped) == (2, 2)


@every_class
@pytest.mark.parametrize("keywords", KEYWORDS, ids=["plain", "keywords"])
def test_signals_wait_until_the_copies_are_written_back(
    keywords: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, q = parameter("transposed"), parameter("transposed")
    optimizer, other = (getattr(ours, name)([x], lr=0.1, **keywords) for x in (p, q))
    write = Copies.write

    def interrupted(copies: Copies) -> None:
        signal.raise_signal(signal.SIGINT)
        write(copies)

    for t in (1, 3):
        give(name, [p], t)
        give(name, [q], t)
        other.step()
        with monkeypatch.context() as patch:
            patch.setattr(Copies, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                optimizer.step()
        assert_same_bits(optimizer, p, other, q)


@pytest.mark.parametrize("name", [*MEASURING, "SGD"])
def test_shared_memory_is_refused(name: str) -> None:
    whole = torch.arange(20.0).reshape(5, 4)
    params = [torch.nn.Parameter(whole[:3].t()), torch.nn.Parameter(whole[2:].t())]
    optimizer = getattr(ours, name)(params)
    give("SGD", params, 1)
    before = bytes_of(optimizer, params)
    with pytest.raises(ValueError, match=f"^{name}: parameter 0 and {name}: parameter 1 must not share memory$"):
        optimizer.step()
    assert ours.explain(optimizer).refused
    assert bytes_of(optimizer, params) == before


def rows_of(shape: tuple[int, int], width: int) -> Any:
    return torch.sparse_coo_tensor(torch.tensor([[3, 9]]), torch.randn(2, width), shape)


@pytest.mark.parametrize("name", ["Adagrad", "SparseAdam"])
def test_slots_in_bfloat16(name: str) -> None:
    gradients = [rows_of((64, 256), 256) for _ in range(3)]
    results = []
    for zeros in (torch.zeros(256, 64).t(), torch.zeros(64, 256)):
        p = torch.nn.Parameter(zeros)
        optimizer = getattr(ours, name)([p], lr=0.1, slot_dtype="bfloat16")
        for gradient in gradients:
            p.grad = gradient
            optimizer.step()
        slots = [x for x in optimizer.state[p].values() if getattr(x, "shape", 0) == p.shape]
        assert {x.dtype for x in slots} == {torch.bfloat16}
        results.append((optimizer, p))
    assert_same_bits(*results[0], *results[1])


@pytest.mark.parametrize("name", ["Adagrad", "SparseAdam"])
def test_slots_in_8_bits_are_refused(name: str) -> None:
    params = [torch.nn.Parameter(torch.zeros(64, 256)), torch.nn.Parameter(torch.zeros(256, 64).t())]
    optimizer = getattr(ours, name)(params, slot_dtype="8bit")
    before = str(optimizer.state_dict()["state"])
    for p in params:
        p.grad = rows_of((64, 256), 256)
    wanted = f"^{name}: slot .* of parameter 1 cannot be in 8 bits, as the parameter is not contiguous; "
    with pytest.raises(ValueError, match=wanted):
        optimizer.step()
    assert str(optimizer.state_dict()["state"]) == before
    optimizer.slot_dtype = None
    optimizer.step()
    assert optimizer.kernel_steps == 1
