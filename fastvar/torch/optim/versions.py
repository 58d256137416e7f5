"""Which releases of PyTorch are supported."""

import torch

from fastvar import versions

OLDEST = (2, 6)  # the first with `param_names` in groups
NEXT = (3, 0)  # the first that may mean something else


def check(version: str) -> None:
    """Raise ImportError, which names the range, if a version of PyTorch is not supported."""
    versions.check("fastvar.torch.optim", "torch", version, OLDEST, NEXT)


check(torch.__version__)
