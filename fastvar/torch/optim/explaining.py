"""What an optimizer of `fastvar.torch.optim` does with its parameters, without a step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from fastvar import kernels, threads
from fastvar.optimizer.planning import PARALLEL
from fastvar.tables import count
from fastvar.torch.optim.keywords import KEYWORDS
from fastvar.torch.optim.planning import name_of
from fastvar.torch.optim.reading import KEPT
from fastvar.torch.optim.stepping import KernelStep


@dataclass(frozen=True, repr=False)
class Explanation:
    """What has run in the kernels, and what the next step would do. Its `repr` says it in lines of text.

    Attributes
    ----------
    name : str
        The class of the optimizer.
    kernel_steps, skipped : int
        How many steps have run in the kernels, and how many `nonfinite="skip"` has skipped.
    parameters, updated, elements : int
        How many parameters there are; how many have a gradient or a state, and the elements of these.
    masters, rounded : int
        How many of these have 16 bits and a master, and how many have 16 bits and are rounded stochastically.
    instruction_set : str
        That of the kernels.
    threads : int
        How many threads a step uses at most.
    keywords : dict
        The keywords that are set.
    copied : dict of str to str
        Parameters whose gradient had to be copied before the kernels could read it, and why.
    refused : list of str
        The errors of a step now. Nothing falls back to PyTorch: while there are any, a step changes nothing.
    """

    name: str
    kernel_steps: int
    skipped: int
    parameters: int
    updated: int
    elements: int
    masters: int
    rounded: int
    instruction_set: str
    threads: int
    keywords: dict[str, Any]
    copied: dict[str, str]
    refused: list[str]

    def __repr__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        keywords = ", ".join(f"{name}={value!r}" for name, value in self.keywords.items())
        sixteen = ", ".join(
            f"{count(n, 'parameter')} {how}"
            for n, how in ((self.masters, "with a master"), (self.rounded, "rounded stochastically"))
            if n
        )
        lines = [
            f"{self.name}: {count(self.kernel_steps, 'step')} in fastvar's kernels{skipped}",
            f"  parameters  {self.updated} of {self.parameters} with a gradient or a state, "
            f"{count(self.elements, 'element')}",
            *([f"  16 bits     {sixteen}"] if sixteen else []),
            f"  kernels     {self.instruction_set}, at most {count(self.threads, 'thread')}",
            *([f"  keywords    {keywords}"] if keywords else []),
            *listed("copied", [f"gradient of {name}: {reason}" for name, reason in self.copied.items()]),
            *listed("refused", self.refused),
        ]
        return "\n".join(lines)


def listed(title: str, entries: list[str]) -> list[str]:
    """Return lines with a title before the first entry."""
    first, *rest = entries or ["nothing"]
    return [f"  {title:<12}{first}", *(f"  {'':<12}{entry}" for entry in rest)]


def explain(optimizer: KernelStep) -> Explanation:
    """Return what has run in the kernels, what the next step would copy or refuse, and why. It changes nothing.

    Parameters
    ----------
    optimizer : KernelStep
        Of any class of `fastvar.torch.optim`. To see what a step does with gradients, call it before `zero_grad`.

    Examples
    --------
    >>> import torch, fastvar.torch.optim as optim
    >>> p = torch.nn.Parameter(torch.zeros(2, 3))
    >>> optimizer = optim.Adam([p])
    >>> p.grad = torch.ones(3, 2).t()
    >>> optimizer.step()
    >>> optim.explain(optimizer).copied
    {'parameter 0': 'its strides are (1, 2), those of the parameter (3, 1)'}
    >>> optim.explain(optimizer).refused
    []
    """
    if not isinstance(optimizer, KernelStep):
        raise TypeError(
            f"explain: must be given an optimizer of fastvar.torch.optim, got {type(optimizer).__module__}."
            f"{type(optimizer).__name__}"
        )
    everything = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    updated = [(p, group) for p, group in everything if p.grad is not None or optimizer.state.get(p)]
    masters = [optimizer._keywords_of(group)["master"] for p, group in updated if p.dtype in KEPT]
    elements = sum(p.numel() for p, _ in updated)
    refused = refusals(optimizer)  # first: it looks which gradients are to be copied
    return Explanation(
        name=type(optimizer).__name__,
        kernel_steps=optimizer.kernel_steps,
        skipped=optimizer.skipped,
        parameters=len(everything),
        updated=len(updated),
        elements=elements,
        masters=masters.count(True),
        rounded=masters.count(False),
        instruction_set=kernels.isa,
        threads=threads.get_num_threads() if elements >= PARALLEL else 1,
        keywords=KEYWORDS.changed(optimizer._keywords),
        copied=dict(optimizer._copied),
        refused=refused,
    )


def refusals(optimizer: KernelStep) -> list[str]:
    """Return the errors of all parameters and gradients or, if there are none, that of the whole step."""
    owner, found, number = type(optimizer).__name__, [], itertools.count()
    plan_class = optimizer._plan_class()
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            name = name_of(group, i, next(number))
            try:
                if p.grad is not None or optimizer.state.get(p):
                    plan_class.check_parameter(owner, name, p)
                if p.grad is not None:
                    plan_class.check_gradient(owner, f"gradient of {name}", p.grad, p)
            except (TypeError, ValueError, RuntimeError) as error:
                found.append(str(error))
    if found:
        return found
    lists = [group["params"] for group in optimizer.param_groups]
    try:
        plan = plan_class(optimizer, lists)
        if plan.members:
            plan.hold(plan.read_gradients(lists, optimizer) or [])
    except (TypeError, ValueError, RuntimeError) as error:
        return [str(error)]
    return []
