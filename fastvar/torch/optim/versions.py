"""Which releases of PyTorch are supported."""

import re

import torch

OLDEST = (2, 6)  # the first with `param_names` in groups
NEXT = (3, 0)  # the first that may mean something else


def check(version: str) -> None:
    """Raise ImportError, which names the range, if a version of PyTorch is not supported."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not OLDEST <= tuple(map(int, numbers.groups())) < NEXT:
        oldest, following = (".".join(map(str, each)) for each in (OLDEST, NEXT))
        raise ImportError(f"fastvar.torch.optim: needs torch>={oldest},<{following}, found {version}")


check(torch.__version__)
