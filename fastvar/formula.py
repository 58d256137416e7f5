"""What an optimizer says of itself: its options, and its rule (layer 6)."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from fastvar import buffers
from fastvar.hyper import Declared, choice, flag, integer, number, text
from fastvar.kernels.numpy_plan import Rule
from fastvar.passes import Between, Pass
from fastvar.state import MARKS
from fastvar.variable import Variable


class Formula(Declared):
    """The options of every optimizer (explained in `Optimizer`), and what a subclass says of its rule."""

    learning_rate: float = number(default=0.001, low=0)
    weight_decay: float | None = number(default=None, low=0, optional=True, kw_only=True)
    clipnorm: float | None = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    clipvalue: float | None = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    global_clipnorm: float | None = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    adaptive_clipnorm: float | None = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    use_ema: bool = flag(default=False, kw_only=True)
    ema_momentum: float = number(default=0.99, low=0, high=1, kw_only=True, per_group=False)
    ema_overwrite_frequency: int | None = integer(default=None, low=1, optional=True, kw_only=True)
    loss_scale_factor: float | None = number(default=None, above=0, optional=True, kw_only=True, per_group=False)
    gradient_accumulation_steps: int | None = integer(default=None, low=2, optional=True, kw_only=True)
    nonfinite: str = choice("ignore", "skip", "raise", default="ignore", kw_only=True)
    name: str | None = text(default=None, kw_only=True)

    # What a subclass says.

    schedulable: ClassVar[bool] = True

    slots: ClassVar[Sequence[str]] = ()
    """Names of the state arrays that the rule keeps for every variable."""

    copies: ClassVar[Sequence[str]] = ()
    """Those of them that hold the weights at first: as these are when a variable gets its first gradient."""

    def initial(self, slot: str, variable: Variable, hyper: Any) -> Any:
        """Return what a slot of a variable holds at first, from its group's hyperparameters: by default zeros."""
        return variable.value if slot in self.copies else 0

    def rule(self) -> Any:
        """Return the update rule: a compiled one, or by default `update` of the subclass."""
        if not self.says("update"):
            raise NotImplementedError(f"{type(self).__name__}: write update(variable, gradient, slots, hyper)")

        def block(w: buffers.Array, g: buffers.Array, slots: Sequence[buffers.Array], c: Sequence[Any]) -> None:
            places = dict(zip(self.slots, slots, strict=True))
            namespace = SimpleNamespace(**places)
            self.update(w, g, namespace, c[0])
            for name, place in places.items():  # `slots.velocity = ...` is as good as writing into it
                if (value := getattr(namespace, name)) is not place:
                    place[...] = value

        return Rule(block, slots=len(self.slots), scalars=1, whole=True)

    def scalars(self, hyper: Any, t: int) -> tuple[Any, ...]:
        """Return what the compiled rule takes at update number `t` (from 1), from a group's hyperparameters."""
        return (SimpleNamespace(**vars(hyper), t=t),)

    # What a rule says that needs more than that.

    @classmethod
    def says(cls, method: str) -> bool:
        """Return whether the class has a method of its own in place of that of `Formula`."""
        return getattr(cls, method) is not getattr(Formula, method)

    @property
    def sign(self) -> float:
        """-1 for an optimizer that maximizes."""
        return 1.0

    def kind(self, variable: Variable) -> str:
        """Return the kind of a variable, if `passes` treats some in another way than others."""
        return ""

    def passes(self, kind: str) -> Sequence[Pass]:
        """Return the passes of a step: one, of `rule`, or several that hand directions on (see `between`)."""
        return [Pass(self.rule(), self.slots, self.scalars)]

    def between(self, step: Between) -> None:
        """Look at the directions of a pass, and replace or scale them for the next, changing nothing else."""

    def keeps(self, slot: str, variable: Variable) -> bool:
        """Return whether there is such a slot for the variable."""
        return True

    def slot_shape(self, slot: str, variable: Variable) -> tuple[int, ...]:
        """Return the shape of a slot that no rule takes; those of rules are like the variable."""
        return variable.shape

    def numbers(self) -> dict[str, float]:
        """Return the numbers that the optimizer keeps for all variables together, and their first values."""
        return {}

    def can_be(self, name: str, number: buffers.Array) -> bool:
        """Return whether one of `numbers`, or of those that every optimizer keeps, can have this value."""
        if name in MARKS:
            return bool(((number == 0) | (number == 1)).all())
        return name != "skipped" or buffers.counts(number)

    def decay(self, hyper: Any) -> float:
        """Return what part of the weights decays before the update."""
        return hyper.learning_rate * (hyper.weight_decay or 0.0)  # type: ignore[no-any-return]

    def penalty(self, hyper: Any) -> float:
        """Return what multiple of the weights is added to their gradients."""
        return 0.0

    def update(self, variable: buffers.Array, gradient: buffers.Array, slots: Any, hyper: Any) -> None:
        """Update one variable in place, in NumPy; to be written by a subclass with a rule of its own.

        Parameters
        ----------
        variable : ndarray
            The weights, to be written in place.
        gradient : ndarray
            Its gradient, after scaling, regularisation and clipping.
        slots : namespace
            The slots by name, to be written in place or assigned.
        hyper : namespace
            The hyperparameters of the variable's group as numbers, and `t`, the number of the update, from 1.
        """
        raise NotImplementedError
