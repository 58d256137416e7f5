"""`torch.optim`, whose steps on the CPU run in fastvar's kernels; see docs/pytorch.md.

    import fastvar.torch.optim as optim  # in place of `import torch.optim as optim`

A class that PyTorch also has is a subclass of PyTorch's with another `step`: parameters are torch tensors;
arguments, messages, `state_dict` and schedulers are PyTorch's. The other classes are optimizers of
`fastvar.optimizers` on torch tensors. Every class also takes `max_grad_norm`, `ema` and `nonfinite`.
`fastvar.torch` has the same optimizers over fastvar's variables, without PyTorch.
"""

from typing import NoReturn

try:
    import torch
    from torch.optim import LBFGS, Optimizer, lr_scheduler, swa_utils
except ModuleNotFoundError as error:
    raise ImportError(
        f"fastvar.torch.optim: there is no module {error.name!r}; run `pip install torch`"
    ) from error

from fastvar.names import unknown as _unknown
from fastvar.torch.optim import versions  # noqa: F401  # checks the release, before anything depends on it
from fastvar.torch.optim.classes import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from fastvar.torch.optim.explaining import Explanation, explain
from fastvar.torch.optim.native import (
    AdaBelief,
    Adan,
    AdEMAMix,
    Adopt,
    Ftrl,
    Lamb,
    Lars,
    Lion,
    Prodigy,
    ScheduleFreeAdamW,
    Signum,
    Yogi,
)
from fastvar.torch.optim.stepping import KernelStep

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Adopt",
    "Explanation",
    "Ftrl",
    "KernelStep",
    "Lamb",
    "Lars",
    "Lion",
    "NAdam",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "ScheduleFreeAdamW",
    "Signum",
    "SparseAdam",
    "Yogi",
    "explain",
    "lr_scheduler",
    "swa_utils",
]
if hasattr(torch.optim, "Muon"):
    from fastvar.torch.optim.classes import Muon

    __all__ += ["Muon"]


def __getattr__(name: str) -> NoReturn:
    if hasattr(torch.optim, name):
        raise AttributeError(f"fastvar.torch.optim has no {name}; torch.optim.{name} is there")
    raise _unknown("fastvar.torch.optim", name, {"fv.torch.optim.": __all__})
