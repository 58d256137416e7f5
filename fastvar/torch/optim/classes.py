"""PyTorch's optimizers with steps in compiled code: which rule each runs, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Unpack

import torch

import fastvar.torch as ours
from fastvar import optimizers
from fastvar.optimizer import Optimizer
from fastvar.torch.optim.measuring import MeasuringPart, MeasuringPlan
from fastvar.torch.optim.parts import Part
from fastvar.torch.optim.planning import TensorPlan
from fastvar.torch.optim.sparse import RowsPlan, SparsePart, SparsePlan
from fastvar.torch.optim.stepping import KernelStep

if TYPE_CHECKING:  # the arguments of PyTorch's classes, for type checkers and editors
    from torch import Tensor
    from torch.optim.optimizer import ParamsT

    from fastvar.torch.optim.keywords import Arguments

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
]


class SGD(KernelStep, torch.optim.SGD):
    """`torch.optim.SGD`; the formula is that of `fastvar.torch.SGD`."""

    rule_class: ClassVar[type[Optimizer]] = ours.SGD
    sparse_plan_class: ClassVar[type[TensorPlan] | None] = RowsPlan
    counts_steps: ClassVar[bool] = False

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            momentum: float = ...,
            dampening: float = ...,
            weight_decay: float | Tensor = ...,
            nesterov: bool = ...,
            *,
            maximize: bool = ...,
            foreach: bool | None = ...,
            differentiable: bool = ...,
            fused: bool | None = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class Adam(KernelStep, torch.optim.Adam):
    """`torch.optim.Adam`; the formula is that of `fastvar.torch.Adam`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adam

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            betas: tuple[float | Tensor, float | Tensor] = ...,
            eps: float = ...,
            weight_decay: float = ...,
            amsgrad: bool = ...,
            *,
            foreach: bool | None = ...,
            maximize: bool = ...,
            capturable: bool = ...,
            differentiable: bool = ...,
            fused: bool | None = ...,
            decoupled_weight_decay: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class AdamW(KernelStep, torch.optim.AdamW):
    """`torch.optim.AdamW`; the formula is that of `fastvar.torch.AdamW`."""

    rule_class: ClassVar[type[Optimizer]] = ours.AdamW

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            betas: tuple[float | Tensor, float | Tensor] = ...,
            eps: float = ...,
            weight_decay: float = ...,
            amsgrad: bool = ...,
            *,
            maximize: bool = ...,
            foreach: bool | None = ...,
            capturable: bool = ...,
            differentiable: bool = ...,
            fused: bool | None = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class NAdam(KernelStep, torch.optim.NAdam):
    """`torch.optim.NAdam`; the formula is that of `fastvar.torch.NAdam`."""

    rule_class: ClassVar[type[Optimizer]] = ours.NAdam
    carries: ClassVar[tuple[str, ...]] = ("mu_product",)

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            betas: tuple[float, float] = ...,
            eps: float = ...,
            weight_decay: float = ...,
            momentum_decay: float = ...,
            decoupled_weight_decay: bool = ...,
            *,
            foreach: bool | None = ...,
            maximize: bool = ...,
            capturable: bool = ...,
            differentiable: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class ASGD(KernelStep, torch.optim.ASGD):
    """`torch.optim.ASGD`; the formula is that of `fastvar.torch.ASGD`."""

    rule_class: ClassVar[type[Optimizer]] = ours.ASGD
    carries: ClassVar[tuple[str, ...]] = ("eta", "mu")

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            lambd: float = ...,
            alpha: float = ...,
            t0: float = ...,
            weight_decay: float = ...,
            foreach: bool | None = ...,
            maximize: bool = ...,
            differentiable: bool = ...,
            capturable: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class RAdam(KernelStep, torch.optim.RAdam):
    """`torch.optim.RAdam`; the formula is that of `fastvar.torch.RAdam`."""

    rule_class: ClassVar[type[Optimizer]] = ours.RAdam

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            betas: tuple[float, float] = ...,
            eps: float = ...,
            weight_decay: float = ...,
            decoupled_weight_decay: bool = ...,
            *,
            foreach: bool | None = ...,
            maximize: bool = ...,
            capturable: bool = ...,
            differentiable: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class Adamax(KernelStep, torch.optim.Adamax):
    """`torch.optim.Adamax`; the formula is that of `fastvar.torch.Adamax`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adamax

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            betas: tuple[float, float] = ...,
            eps: float = ...,
            weight_decay: float = ...,
            foreach: bool | None = ...,
            *,
            maximize: bool = ...,
            differentiable: bool = ...,
            capturable: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class RMSprop(KernelStep, torch.optim.RMSprop):
    """`torch.optim.RMSprop`; the formula is that of `fastvar.torch.RMSprop`."""

    rule_class: ClassVar[type[Optimizer]] = ours.RMSprop

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            alpha: float = ...,
            eps: float = ...,
            weight_decay: float = ...,
            momentum: float = ...,
            centered: bool = ...,
            capturable: bool = ...,
            foreach: bool | None = ...,
            maximize: bool = ...,
            differentiable: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class Adagrad(KernelStep, torch.optim.Adagrad):
    """`torch.optim.Adagrad`; the formula is that of `fastvar.torch.Adagrad`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adagrad
    sparse_plan_class: ClassVar[type[TensorPlan] | None] = RowsPlan

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            lr_decay: float = ...,
            weight_decay: float = ...,
            initial_accumulator_value: float = ...,
            eps: float = ...,
            foreach: bool | None = ...,
            *,
            maximize: bool = ...,
            differentiable: bool = ...,
            fused: bool | None = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class Adadelta(KernelStep, torch.optim.Adadelta):
    """`torch.optim.Adadelta`; the formula is that of `fastvar.torch.Adadelta`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adadelta

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            rho: float = ...,
            eps: float = ...,
            weight_decay: float = ...,
            foreach: bool | None = ...,
            *,
            capturable: bool = ...,
            maximize: bool = ...,
            differentiable: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class Rprop(KernelStep, torch.optim.Rprop):
    """`torch.optim.Rprop`; the formula is that of `fastvar.torch.Rprop`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Rprop

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            etas: tuple[float, float] = ...,
            step_sizes: tuple[float, float] = ...,
            *,
            capturable: bool = ...,
            foreach: bool | None = ...,
            maximize: bool = ...,
            differentiable: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class Adafactor(KernelStep, torch.optim.Adafactor):
    """`torch.optim.Adafactor`; the formula is that of `fastvar.torch.Adafactor`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adafactor
    part_class: ClassVar[type[Part]] = MeasuringPart
    plan_class: ClassVar[type[TensorPlan]] = MeasuringPlan

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            beta2_decay: float = ...,
            eps: tuple[float | None, float] = ...,
            d: float = ...,
            weight_decay: float = ...,
            *,
            foreach: bool | None = ...,
            maximize: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


class SparseAdam(KernelStep, torch.optim.SparseAdam):
    """`torch.optim.SparseAdam`; the formula is that of `fastvar.torch.Adam`, on the rows of sparse gradients."""

    rule_class: ClassVar[type[Optimizer]] = optimizers.Adam
    part_class: ClassVar[type[Part]] = SparsePart
    plan_class: ClassVar[type[TensorPlan]] = SparsePlan

    if TYPE_CHECKING:

        def __init__(
            self,
            params: ParamsT,
            lr: float | Tensor = ...,
            betas: tuple[float, float] = ...,
            eps: float = ...,
            maximize: bool = ...,
            **keywords: Unpack[Arguments],
        ) -> None: ...


if hasattr(torch.optim, "Muon"):  # since 2.9

    class Muon(KernelStep, torch.optim.Muon):
        """`torch.optim.Muon`, which iterates in the dtype of the parameters instead of bfloat16."""

        rule_class: ClassVar[type[Optimizer]] = ours.Muon
        part_class: ClassVar[type[Part]] = MeasuringPart
        plan_class: ClassVar[type[TensorPlan]] = MeasuringPlan
        counts_steps: ClassVar[bool] = False

        if TYPE_CHECKING:

            def __init__(
                self,
                params: ParamsT,
                lr: float = ...,
                weight_decay: float = ...,
                momentum: float = ...,
                nesterov: bool = ...,
                ns_coefficients: tuple[float, float, float] = ...,
                eps: float = ...,
                ns_steps: int = ...,
                adjust_lr_fn: str | None = ...,
                **keywords: Unpack[Arguments],
            ) -> None: ...

    __all__ += ["Muon"]
