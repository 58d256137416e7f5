"""The contract of a rule: what an optimizer class says of its update, and all that a step asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from fastvar import buffers
from fastvar.kernels.numpy_plan import Rule as NumpyRule
from fastvar.optimizer.groups import Group
from fastvar.optimizer.options import Options
from fastvar.optimizer.passes import Measured, Pass
from fastvar.place import Place

MARKS = ("accumulated", "averaged", "begun")  # numbers of every optimizer, 1 where something has happened


class Rule(Options):
    """What a subclass says; it overrides what differs from the defaults here.

    Most say `slots`, `rule` and `scalars`, or `slots` and `update`. In `hyper` are the hyperparameters of a group
    as numbers.
    """

    # The arrays that a rule keeps.

    slots: ClassVar[Sequence[str]] = ()
    """Names of the state arrays that the rule keeps for every variable."""

    weight_copies: ClassVar[Sequence[str]] = ()
    """Those of them that hold the weights at first: as these are when a variable gets its first gradient."""

    def has_slot(self, slot: str, variable: Place) -> bool:
        """Return whether there is such a slot for the variable."""
        return True

    def slot_shape(self, slot: str, variable: Place) -> tuple[int, ...]:
        """Return the shape of a slot that no pass takes; those of passes are like the variable."""
        return variable.shape

    def initial(self, slot: str, variable: Place, hyper: Any) -> Any:
        """Return what a slot of a variable holds at first: by default zeros."""
        return variable.value if slot in self.weight_copies else 0

    def initial_numbers(self) -> dict[str, float]:
        """Return the numbers that the rule keeps for all variables together, and their first values."""
        return {}

    def valid_number(self, name: str, number: buffers.Array) -> bool:
        """Return whether a number, the rule's or one of every optimizer, can have this value."""
        if name in MARKS:
            return bool(((number == 0) | (number == 1)).all())
        return name not in ("skipped", "missed") or buffers.are_counts(number)

    counts_per_variable: ClassVar[bool] = False
    """Whether `t` counts the updates of each variable, those in which it had a gradient, in place of all updates.

    Then `hyper.places` are the positions of those variables that the scalars are for.
    """

    def initial_numbers_per_variable(self) -> dict[str, float]:
        """Return the numbers that the rule keeps for each variable, and their first values.

        A rule that keeps any must count per variable.
        """
        return {}

    def numbers_of_today(self, numbers: dict[str, Any], sizes: list[int]) -> dict[str, Any]:
        """Return the numbers of a file, which may be of an older version, for groups of so many variables."""
        return numbers

    # The update.

    def rule(self) -> Any:
        """Return the update rule: a compiled one, or by default `update` of the subclass."""
        if not self.overrides("update"):
            raise NotImplementedError(f"{type(self).__name__}: write update(variable, gradient, slots, hyper)")

        def block(w: buffers.Array, g: buffers.Array, c: Any, *slots: buffers.Array) -> None:
            places = dict(zip(self.slots, slots, strict=True))
            namespace = SimpleNamespace(**places)
            self.update(w, g, namespace, c.hyper)
            for name, place in places.items():  # `slots.velocity = ...` is as good as writing into it
                if (value := getattr(namespace, name)) is not place:
                    place[...] = value

        return NumpyRule(block, tuple(self.slots), ("hyper",), whole=True)

    def scalars(self, hyper: Any, t: int) -> tuple[Any, ...]:
        """Return the scalars of the rule at update number `t`, from 1.

        Return them in the order of the rule's `scalars`, each as a variable or an attribute of that name:
        `return take, hyper.epsilon`. A test compares the names.
        """
        hyper = SimpleNamespace(**vars(hyper), t=t)
        return (hyper,)

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

    # Rules that treat some variables in another way than others, or that need norms.

    def kind_of(self, variable: Place) -> str:
        """Return the kind of a variable, if `pass_of` treats some in another way than others."""
        return ""

    def pass_of(self, kind: str) -> Pass:
        """Return how variables of a kind are updated, and what is measured before."""
        return Pass(self.rule(), self.slots, self.scalars)

    def scale_matrices(self, step: Measured) -> None:
        """Set the factors of the rows and columns of gradients, where `Pass.matrices` asks for it."""

    def adjust(self, step: Measured) -> None:
        """Look at the sums that `Pass.sums` asks for, and set the sizes of gradients or directions."""

    # What happens around it.

    def gradient_sign(self) -> float:
        """Return -1 for an optimizer that maximizes."""
        return 1.0

    def decay_rate(self, hyper: Any) -> float:
        """Return what part of the weights decays before the update."""
        return hyper.learning_rate * (hyper.weight_decay or 0.0)  # type: ignore[no-any-return]

    def l2_rate(self, hyper: Any) -> float:
        """Return what multiple of the weights is added to their gradients."""
        return 0.0

    # What the optimizer says of itself.

    @property
    def groups(self) -> list[Group[Any]]:
        """The groups, in the order of `build`: their hyperparameters can be set."""
        raise NotImplementedError

    def decays(self, variable: Place) -> bool:
        """Return whether `weight_decay` concerns the variable."""
        return True

    @classmethod
    def overrides(cls, method: str) -> bool:
        """Return whether the class has a method of its own in place of that of `Rule`."""
        return getattr(cls, method) is not getattr(Rule, method)
