"""Keras's optimizers with steps in compiled code: which rule each runs, and where Keras keeps its slots."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import keras

from fastvar import optimizers as ours
from fastvar.keras.optimizers.stepping import KernelStep
from fastvar.optimizer import Optimizer

Step = TypeVar("Step", bound=KernelStep)

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lamb",
    "Lion",
    "Muon",
    "Nadam",
    "RMSprop",
]


def registered(cls: type[Step]) -> type[Step]:
    """Let Keras find a class by its name when it loads a model."""
    keras.saving.register_keras_serializable(package="fastvar")(cls)
    return cls


@registered
class SGD(KernelStep, keras.optimizers.SGD):
    """`keras.optimizers.SGD`; the formula is that of `fastvar.optimizers.SGD`."""

    rule_class: ClassVar[type[Optimizer]] = ours.SGD
    slot_lists: ClassVar[dict[str, str]] = {"momentum": "momentums"}


@registered
class Adam(KernelStep, keras.optimizers.Adam):
    """`keras.optimizers.Adam`; the formula is that of `fastvar.optimizers.Adam`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adam
    slot_lists: ClassVar[dict[str, str]] = {
        "momentum": "_momentums",
        "velocity": "_velocities",
        "velocity_hat": "_velocity_hats",
    }


@registered
class AdamW(KernelStep, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`; the formula is that of `fastvar.optimizers.AdamW`."""

    rule_class: ClassVar[type[Optimizer]] = ours.AdamW
    slot_lists: ClassVar[dict[str, str]] = Adam.slot_lists


@registered
class Nadam(KernelStep, keras.optimizers.Nadam):
    """`keras.optimizers.Nadam`; the formula is that of `fastvar.optimizers.Nadam`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Nadam
    slot_lists: ClassVar[dict[str, str]] = {"momentum": "_momentums", "velocity": "_velocities"}

    def _after_update(self, rule: Any) -> None:
        self._u_product.assign(ours.Nadam.product(rule.beta_1, rule.iterations))


@registered
class Adamax(KernelStep, keras.optimizers.Adamax):
    """`keras.optimizers.Adamax`; the formula is that of `fastvar.optimizers.Adamax`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adamax
    slot_lists: ClassVar[dict[str, str]] = {"momentum": "_m", "norm": "_u"}


@registered
class RMSprop(KernelStep, keras.optimizers.RMSprop):
    """`keras.optimizers.RMSprop`; the formula is that of `fastvar.optimizers.RMSprop`."""

    rule_class: ClassVar[type[Optimizer]] = ours.RMSprop
    slot_lists: ClassVar[dict[str, str]] = {
        "velocity": "_velocities",
        "momentum": "_momentums",
        "average_gradient": "_average_gradients",
    }


@registered
class Adagrad(KernelStep, keras.optimizers.Adagrad):
    """`keras.optimizers.Adagrad`; the formula is that of `fastvar.optimizers.Adagrad`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adagrad
    slot_lists: ClassVar[dict[str, str]] = {"accumulator": "_accumulators"}


@registered
class Adadelta(KernelStep, keras.optimizers.Adadelta):
    """`keras.optimizers.Adadelta`; the formula is that of `fastvar.optimizers.Adadelta`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adadelta
    slot_lists: ClassVar[dict[str, str]] = {
        "accumulated_grad": "_accumulated_grads",
        "accumulated_delta_var": "_accumulated_delta_vars",
    }


@registered
class Ftrl(KernelStep, keras.optimizers.Ftrl):
    """`keras.optimizers.Ftrl`; the formula is that of `fastvar.optimizers.Ftrl`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Ftrl
    slot_lists: ClassVar[dict[str, str]] = {"accumulator": "_accumulators", "linear": "_linears"}


@registered
class Lion(KernelStep, keras.optimizers.Lion):
    """`keras.optimizers.Lion`; the formula is that of `fastvar.optimizers.Lion`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Lion
    slot_lists: ClassVar[dict[str, str]] = {"momentum": "_momentums"}


@registered
class Lamb(KernelStep, keras.optimizers.Lamb):
    """`keras.optimizers.Lamb`; the formula is that of `fastvar.optimizers.Lamb`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Lamb
    slot_lists: ClassVar[dict[str, str]] = {"momentum": "_momentums", "velocity": "_velocities"}


@registered
class Adafactor(KernelStep, keras.optimizers.Adafactor):
    """`keras.optimizers.Adafactor`; the formula is that of `fastvar.optimizers.Adafactor`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Adafactor
    slot_lists: ClassVar[dict[str, str]] = {"velocity": "_v", "row": "_r", "column": "_c"}


@registered
class Muon(KernelStep, keras.optimizers.Muon):
    """`keras.optimizers.Muon`; the formula is that of `fastvar.optimizers.Muon`."""

    rule_class: ClassVar[type[Optimizer]] = ours.Muon
    slot_lists: ClassVar[dict[str, str]] = {"momentum": "momentums", "velocity": "adam_velocities"}


if hasattr(keras.optimizers, "ScheduleFreeAdamW"):  # since Keras 3.14
    __all__ += ["ScheduleFreeAdamW"]

    @registered
    class ScheduleFreeAdamW(KernelStep, keras.optimizers.ScheduleFreeAdamW):
        """`keras.optimizers.ScheduleFreeAdamW`; the formula is that of `fastvar.optimizers.ScheduleFreeAdamW`."""

        rule_class = ours.ScheduleFreeAdamW
        slot_lists: ClassVar = {"momentum": "_momentums", "velocity": "_velocities"}
