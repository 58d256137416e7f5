"""A small network and its data, for frameworks that train it."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.torch_tensors import assert_close

BATCHES = 12


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def batches() -> Any:
    x = torch.randn(8 * BATCHES, 4, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8)


def assert_trained_alike(mine: Any, theirs: Any, losses: Any, wanted: Any, in_bfloat16: bool = False) -> None:
    """Compare two trained modules, and the losses on their way.

    Products in bfloat16 make the bound larger: weights that differ in the last bit may round to different ones.
    """
    assert len(losses) > 0
    pairs = [("losses", torch.tensor(losses), torch.tensor(wanted))]
    pairs += [(name, p, q) for (name, p), q in zip(mine.named_parameters(), theirs.parameters(), strict=True)]
    for name, p, q in pairs:
        if in_bfloat16:
            torch.testing.assert_close(p, q, rtol=0, atol=2e-4, msg=name)
        else:
            assert_close(p, q, name)


def assert_same_bits(mine: Any, other: Any) -> None:
    assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), other.parameters(), strict=True))
