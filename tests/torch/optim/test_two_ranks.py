"""Two processes train together: DistributedDataParallel, ZeroRedundancyOptimizer, distributed checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.support import two_ranks
from tests.support.torch_tensors import assert_close


def test_two_ranks_train_as_with_pytorch(tmp_path: Path) -> None:
    """One test, so that the processes start once."""
    torch.multiprocessing.spawn(two_ranks.main, (tmp_path,), nprocs=2)
    (found, sixteens, errors), (on_other, sixteens_on_other, _) = (
        torch.load(tmp_path / f"{rank}.pt") for rank in range(2)
    )
    assert len(found) == 5 * len(two_ranks.KINDS)
    assert found.keys() == on_other.keys()
    for case in found:
        weights, losses, steps = found[case]["ours"]
        wanted, wanted_losses, _ = found[case]["theirs"]
        assert steps == on_other[case]["ours"][2] == two_ranks.STEPS, case
        for k, (mine, theirs) in enumerate(zip(weights, wanted, strict=True)):
            assert_close(mine, theirs, f"{case}: parameter {k}")
            assert torch.equal(mine, on_other[case]["ours"][0][k]), f"{case}: ranks differ in parameter {k}"
        assert_close(torch.tensor(losses), torch.tensor(wanted_losses), f"{case}: losses")
    for (case, view), tensors in sixteens.items():
        alone = two_ranks.sixteen_alone(case)
        assert len(alone) == (4 if case.endswith("alone") else 8), case
        for k, expected in enumerate(alone):
            for mine in (tensors[k], sixteens_on_other[case, view][k]):
                assert mine.dtype == expected.dtype, case
                assert torch.equal(mine, expected), f"{case} view={view}: parameter or master {k}"
    assert re.search(r"AdamW: parameter 0 must be .* got .*DTensor", errors["fully_shard"])
    assert "no supported functional optimizer" in errors["overlap"]  # PyTorch's
