"""The step that every class of `fastvar.torch.optim` has in place of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim import optimizer as of_torch

from fastvar.torch.optim.keywords import Extended
from fastvar.torch.optim.parts import Part
from fastvar.torch.optim.planning import TensorPlan
from fastvar.torch.optim.reading import is_sparse

_profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled


class KernelStep(Extended):
    """An optimizer of PyTorch whose `step` runs in fastvar's kernels; it comes before PyTorch's class as a base.

    Parameters
    ----------
    *args, **kwargs
        Those of PyTorch's class, and the keywords of `Extended`.

    Attributes
    ----------
    rule_class : type
        The class of `fastvar.torch`, or of `fastvar.optimizers`, whose rule and scalars it takes.
    part_class : type
        How the groups give that rule its hyperparameters.
    plan_class : type
        What runs the step.
    sparse_plan_class : type or None
        What runs a step in which a gradient is sparse, if that is something else.
    counts_steps : bool
        Whether PyTorch keeps a count of steps for each parameter.
    carries : tuple of str
        The numbers of each parameter, in its state, that one update leaves to the next.
    kernel_steps : int
        How many steps have run in fastvar's kernels.
    """

    part_class: ClassVar[type[Part]] = Part
    plan_class: ClassVar[type[TensorPlan]] = TensorPlan
    sparse_plan_class: ClassVar[type[TensorPlan] | None] = None
    counts_steps: ClassVar[bool] = True
    carries: ClassVar[tuple[str, ...]] = ()
    kernel_steps = 0
    _plan: TensorPlan | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters once from their gradients, and return the loss.

        Parameters
        ----------
        closure : callable, optional
            Called first; computes the gradients and returns the loss.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            Naming the parameter that the kernels cannot update; nothing has changed then.
        """
        if torch.compiler.is_compiling():
            return _uncompiled(self, closure)
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or of_torch._global_optimizer_pre_hooks
            or of_torch._global_optimizer_post_hooks
            or _profiling()
        ):
            return _with_hooks(self, closure)
        return _step(self, closure)

    def _plan_class(self) -> type[TensorPlan]:
        """Return what can run a step from the gradients that are there now."""
        if self.sparse_plan_class is not None:
            for group in self.param_groups:
                if any(is_sparse(p.grad) for p in group["params"]):
                    return self.sparse_plan_class
        return self.plan_class

    step.hooked = True  # type: ignore[attr-defined]  # PyTorch need not wrap it: 7 us at every step


def _step(optimizer: KernelStep, closure: Callable[[], Any] | None = None) -> Any:
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    infinite = getattr(optimizer, "found_inf", None)  # of torch.amp.GradScaler
    if infinite is not None and infinite.item():
        return loss
    lists = [group["params"] for group in optimizer.param_groups]
    plan = optimizer._plan
    to_copy = None if plan is None else plan.read_gradients(lists, optimizer)
    if to_copy and not isinstance(plan, optimizer._plan_class()):
        to_copy = None  # one of them is sparse for the first time
    if plan is None or to_copy is None:
        optimizer._plan = None
        plan = optimizer._plan_class()(optimizer, lists)
        to_copy = plan.read_gradients(lists, optimizer) if plan.members else None
        if to_copy is None:  # nothing has a gradient
            return loss
    try:
        if plan.step(optimizer, to_copy):
            optimizer.kernel_steps += 1
    finally:
        plan.watch.release()
    optimizer._plan = None if plan.new_state else plan
    return loss


_uncompiled = torch._compile._disable_dynamo(_step)  # which imports the compiler at its first call, not before
_with_hooks = of_torch.Optimizer.profile_hook_step(_step)
