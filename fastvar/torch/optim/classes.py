"""PyTorch's optimizers with steps in compiled code: which rule each runs, and nothing else."""

from __future__ import annotations

import torch

import fastvar.torch as ours
from fastvar.torch.optim.stepping import KernelStep

__all__ = ["ASGD", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop"]


class SGD(KernelStep, torch.optim.SGD):
    """`torch.optim.SGD`."""

    rule_class = ours.SGD
    counts_steps = False


class Adam(KernelStep, torch.optim.Adam):
    """`torch.optim.Adam`."""

    rule_class = ours.Adam


class AdamW(KernelStep, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    rule_class = ours.AdamW


class NAdam(KernelStep, torch.optim.NAdam):
    """`torch.optim.NAdam`."""

    rule_class = ours.NAdam
    carries = ("mu_product",)


class ASGD(KernelStep, torch.optim.ASGD):
    """`torch.optim.ASGD`."""

    rule_class = ours.ASGD
    carries = ("eta", "mu")


class RAdam(KernelStep, torch.optim.RAdam):
    """`torch.optim.RAdam`."""

    rule_class = ours.RAdam


class Adamax(KernelStep, torch.optim.Adamax):
    """`torch.optim.Adamax`."""

    rule_class = ours.Adamax


class RMSprop(KernelStep, torch.optim.RMSprop):
    """`torch.optim.RMSprop`."""

    rule_class = ours.RMSprop


class Adagrad(KernelStep, torch.optim.Adagrad):
    """`torch.optim.Adagrad`."""

    rule_class = ours.Adagrad


class Adadelta(KernelStep, torch.optim.Adadelta):
    """`torch.optim.Adadelta`."""

    rule_class = ours.Adadelta


class Rprop(KernelStep, torch.optim.Rprop):
    """`torch.optim.Rprop`."""

    rule_class = ours.Rprop
