"""An update rule in plain NumPy."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from fastvar.buffers import Array

Block = Callable[..., None]


class Rule(NamedTuple):
    """An update rule: `block(w, g, c, *slots)` writes `w` and the slots in place, and reads scalars from `c`.

    For the sums before the update, `measure` may take its place. It takes the first slots, and writes `w` alone,
    the direction.
    """

    block: Block
    slots: tuple[str, ...]  # names
    scalars: tuple[str, ...]
    whole: bool = False  # it takes the scalars in double, not in the arithmetic type
    measure: Block | None = None

    def apply(self, w: Array, g: Array, slots: Sequence[Array], scalars: Sequence[Any]) -> None:
        """Run the rule with scalars in the order of their names."""
        self.block(w, g, self._named(scalars, w.dtype.type), *slots)

    def apply_measure(self, w: Array, g: Array, slots: Sequence[Array], scalars: Sequence[Any]) -> None:
        """Run `measure` in place of the rule if there is one."""
        (self.measure or self.block)(w, g, self._named(scalars, w.dtype.type), *slots[: self.measured])

    @property
    def measured(self) -> int:
        """How many slots are read for the sums."""
        return len(inspect.signature(self.measure).parameters) - 3 if self.measure else len(self.slots)

    def _named(self, scalars: Sequence[Any], real: Any) -> SimpleNamespace:
        numbers = scalars if self.whole else [real(scalar) for scalar in scalars]
        return SimpleNamespace(**dict(zip(self.scalars, numbers, strict=True)))
