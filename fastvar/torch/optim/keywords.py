"""The keywords that every class of `fastvar.torch.optim` has: clipping, averages, formats of slots and more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, TypedDict

import torch

from fastvar.hyper import number
from fastvar.module import Module, holds_variables
from fastvar.optimizer import Optimizer
from fastvar.optimizer.keywords import Keywords, arguments_of, keyword
from fastvar.torch.optim import masters
from fastvar.torch.optim.masters import MASTER
from fastvar.torch.optim.slot_formats import cast_back

KEY = "fastvar"  # of a `state_dict`: what PyTorch does not have
OF_GROUPS = ("slot_dtype", "slot_dtype_min_size", "master")  # keywords that a group may have, too
EMA = "ema"  # the name of the averages in the state of parameters
KEYWORDS = Keywords(
    ("nonfinite", "slot_dtype", "slot_dtype_min_size", "master", "seed"),
    max_grad_norm=number(default=None, above=0, optional=True),
    ema=number(default=None, above=0, below=1, optional=True),
)


class Arguments(TypedDict, total=False):
    """The keywords as arguments, for type checkers."""

    max_grad_norm: float | None
    ema: float | None
    nonfinite: Literal["ignore", "skip", "raise"]
    slot_dtype: Literal["bfloat16", "8bit"] | None
    slot_dtype_min_size: int
    master: bool
    seed: int


class Extended(torch.optim.Optimizer):
    """An optimizer of PyTorch with keywords of fastvar, which are attributes, too.

    Parameters
    ----------
    max_grad_norm : float, optional
        Clip the gradients of all groups together to at most this 2-norm, > 0, as
        `torch.nn.utils.clip_grad_norm_` does before a step; but `grad` itself stays as it is.
    ema : float, optional
        The decay d of a moving average of every parameter, in (0, 1): `average = d * average + (1 - d) * p` after
        every update; it begins as a copy after the first. See `average_parameters` and `copy_averages`.
    nonfinite : {"ignore", "skip", "raise"}
        What a step does if a gradient holds infinity or NaN, or if something finite would become infinite or NaN:
        "ignore" updates anyway, "skip" changes nothing and counts the step in `skipped`, "raise" changes nothing
        and raises ValueError.
    slot_dtype : {None, "bfloat16", "8bit"}
        How slots are stored: in the dtype of their parameter (float32 if that has 16 bits), or in 2 bytes or about
        1 byte an element, rounded stochastically. In 8 bits, the state has the tensors `exp_avg_codes` and
        `exp_avg_scales` for `exp_avg`.
    slot_dtype_min_size : int
        Slots of parameters with fewer elements, by default 4096, are not stored in fewer bytes.
    master : bool
        Whether the state of parameters of 16 bits keeps what these leave out of float32 numbers, "master", so that
        they train as in float32. Without it, bfloat16 is rounded stochastically; float16 is an error.
        A group of parameters can have its own `slot_dtype`, `slot_dtype_min_size` and `master`.
    seed : int
        Seed of the stochastic rounding, from 0 to 2^64 - 1.

    Attributes
    ----------
    skipped : int
        How many steps `nonfinite="skip"` has skipped.
    grad_norm : float or None
        With `max_grad_norm`: the norm of all gradients in the last step, before they were clipped.
    """

    rule_class: ClassVar[type[Optimizer]]
    max_grad_norm: float | None = keyword()
    ema: float | None = keyword()
    nonfinite: str = keyword()
    slot_dtype: str | None = keyword()
    slot_dtype_min_size: int = keyword()
    master: bool = keyword()
    seed: int = keyword()
    skipped: int = 0
    grad_norm: float | None = None
    _keywords: dict[str, Any] = KEYWORDS.defaults
    _averaged = False  # whether the parameters hold their averages for a while
    _plan: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__signature__ = arguments_of(cls.__init__)  # type: ignore[attr-defined]
        elif "rule_class" in vars(cls):
            theirs: Any = super()
            cls.__signature__ = KEYWORDS.extended(arguments_of(theirs.__init__))  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._take(KEYWORDS.popped(kwargs))
        self._copied: dict[str, str] = {}  # parameters whose gradient had to be copied, and why
        params = args[0] if args else kwargs.get("params")
        if isinstance(params, Module) or not isinstance(params, (list, tuple)):
            self._refuse_variables(params)
        super().__init__(*args, **kwargs)

    def _take(self, given: dict[str, Any]) -> None:
        """Take keywords, or raise an error that names one."""
        self._keywords, self._plan = self._keywords | KEYWORDS.checked(self, given), None

    def _keywords_of(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return the keywords of a group: its own before those of the optimizer."""
        own = {name: group[name] for name in OF_GROUPS if name in group}
        return self._keywords | KEYWORDS.checked(self, own)

    def _refuse_variables(self, given: Any) -> None:
        if isinstance(given, Module) or holds_variables(given):
            package = self.rule_class.__module__.rpartition(".")[0]
            there = f"{package}.{self.rule_class.__name__}"
            raise TypeError(
                f"{type(self).__name__}: parameters must be torch tensors; use {there} for fastvar.Variable"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as PyTorch does.

        Raises
        ------
        TypeError, ValueError
            If it holds variables of fastvar; `fastvar.torch` and `fastvar.optimizers` have optimizers for these.
            Or if its `slot_dtype`, `slot_dtype_min_size` or `master` is wrong.
        """
        self._refuse_variables(param_group)
        if isinstance(param_group, dict):
            self._keywords_of(param_group)
        super().add_param_group(param_group)

    # State.

    def _own_state(self) -> dict[str, Any]:
        """Return the keywords that are set, and the number of skipped steps if there are any."""
        return KEYWORDS.changed(self._keywords) | ({"skipped": self.skipped} if self.skipped else {})

    def __getstate__(self) -> dict[str, Any]:
        own = {"_keywords": self._keywords, "skipped": self.skipped, "_copied": self._copied}
        return super().__getstate__() | own

    def state_dict(self) -> dict[str, Any]:
        """Return the state as PyTorch does, with the keywords under "fastvar" if any is set."""
        state = super().state_dict()
        return state | {KEY: own} if (own := self._own_state()) else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state as PyTorch does, and the keywords in it; those that it does not have stay.

        Raises
        ------
        ValueError
            As in PyTorch, or if there is a keyword that is not known. Nothing has changed.
        """
        own = dict(state_dict.get(KEY, {}))
        skipped = own.pop("skipped", self.skipped)
        if unknown := [*own.keys() - KEYWORDS.parameters.keys()]:
            raise ValueError(f"{type(self).__name__}: unknown {unknown[0]!r} in state_dict[{KEY!r}]")
        KEYWORDS.checked(self, own)
        super().load_state_dict(state_dict)
        cast_back(self, state_dict)
        self._take(own)
        self.skipped = skipped

    def __repr__(self) -> str:
        own = "".join(f"    {name}: {value}\n" for name, value in self._own_state().items())
        return super().__repr__().removesuffix(")") + (f"Keywords\n{own})" if own else ")")

    # Averages.

    def _averages(self) -> list[tuple[Any, Any]]:
        """Return the parameters with averages, and these. Others have had no gradient: they are their averages."""
        if self.ema is None:
            raise ValueError(f"{type(self).__name__}: must be given ema to keep averages")
        everything = [p for group in self.param_groups for p in group["params"]]
        return [(p, self.state[p][EMA]) for p in everything if EMA in self.state.get(p, ())]

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Let the parameters hold their averages within a `with` block, to evaluate or save the module.

        A step in the block is a RuntimeError.
        """
        pairs = self._averages()
        params = [p for p, _ in pairs]
        kept, before = [p.detach().clone() for p in params], self._averaged
        try:
            self._averaged, self._plan = True, None
            assign(params, [average for _, average in pairs])
            yield
        finally:
            assign(params, kept)
            self._averaged = before

    def copy_averages(self) -> None:
        """Overwrite the parameters with their averages. Call it when training ends."""
        for p, average in self._averages():
            if MASTER in self.state[p]:
                masters.write(p, self.state[p][MASTER], average)
            else:
                assign([p], [average])


@torch.no_grad()
def assign(params: list[Any], values: list[Any]) -> None:
    """Copy values into parameters."""
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
