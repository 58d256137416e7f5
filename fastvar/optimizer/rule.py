"""The contract of a rule: what an optimizer class declares about its update, and all that a step uses."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

from fastvar import buffers
from fastvar.masters import exact
from fastvar.optimizer.groups import Group
from fastvar.optimizer.options import Options
from fastvar.optimizer.passes import Measured, Pass
from fastvar.optimizer.written import Written
from fastvar.place import Place

MARKS = ("accumulated", "averaged", "begun")  # numbers of every optimizer, which are 1 if something has happened


class Rule(Options):
    """The contract of a rule, with defaults for a subclass to override.

    Most subclasses define `slots`, `rule` and `scalars`, or `slots` and `update`. `hyper` holds the
    hyperparameters of a group as numbers.
    """

    # State.

    slots: ClassVar[Sequence[str]] = ()
    """Names of the state arrays of each variable."""

    weight_copies: ClassVar[Sequence[str]] = ()
    """Slots that start as a copy of the weights, taken when the variable gets its first gradient."""

    exact_slots: ClassVar[Sequence[str]] = ()
    """Slots that stay in the dtype of the weights whatever `slot_dtype` is, beside `weight_copies` and those that
    no pass updates: they are weights rather than statistics, or rounding them spoils the rule."""

    def has_slot(self, slot: str, variable: Place) -> bool:
        """Return whether the variable has this slot."""
        return True

    def slot_shape(self, slot: str, variable: Place) -> tuple[int, ...]:
        """Return the shape of a slot that no pass uses. Slots of passes have the shape of the variable."""
        return variable.shape

    def initial(self, slot: str, variable: Place, hyper: Any) -> Any:
        """Return the initial value of a slot, by default 0."""
        return exact(variable.memory) if slot in self.weight_copies else 0

    def initial_numbers(self) -> dict[str, float]:
        """Return the names and initial values of numbers that the rule keeps for all variables together."""
        return {}

    def valid_number(self, name: str, number: buffers.Array) -> bool:
        """Return whether a number, of the rule or of every optimizer, can have this value."""
        if name in MARKS:
            return bool(((number == 0) | (number == 1)).all())
        return name not in ("skipped", "missed") or buffers.are_counts(number)

    counts_per_variable: ClassVar[bool] = False
    """Whether `t` counts the updates of each variable, in which it had a gradient, instead of all updates.

    Then `hyper.places` holds the positions of the variables that the scalars are for.
    """

    def initial_numbers_per_variable(self) -> dict[str, float]:
        """Return the names and initial values of numbers that the rule keeps for each variable.

        A rule with such numbers must count per variable.
        """
        return {}

    def numbers_of_today(self, numbers: dict[str, Any], sizes: list[int]) -> dict[str, Any]:
        """Return the numbers of a file, which may be of an older version, for groups of so many variables."""
        return numbers

    # The update.

    def rule(self) -> Any:
        """Return the update rule: a compiled one, or by default the `update` of the subclass."""
        if not self.overrides("update"):
            raise NotImplementedError(f"{type(self).__name__}: write update(variable, gradient, slots, hyper)")
        try:
            inspect.signature(self.update).bind(None, None, None, None)
        except TypeError as error:
            raise TypeError(
                f"{type(self).__name__}: update must be update(self, variable, gradient, slots, hyper): {error}"
            ) from None
        return Written(self.update, self.slots, self._owner).rule()

    def scalars(self, hyper: Any, t: int) -> tuple[Any, ...]:
        """Return the scalars of the rule at update number `t`, from 1.

        Return them in the order of the rule's `scalars`, each as a variable or an attribute of that name:
        `return take, hyper.epsilon`. A test compares the names.
        """
        hyper = SimpleNamespace(**vars(hyper), t=t)
        return (hyper,)

    def update(self, variable: buffers.Array, gradient: buffers.Array, slots: Any, hyper: Any) -> None:
        """Update one variable in place, in NumPy. A subclass with its own rule defines it.

        `variable = variable - step` would only name another array: write `variable -= step`. A warning says so.

        Parameters
        ----------
        variable : ndarray
            The weights, to write in place.
        gradient : ndarray
            The gradient, after scaling, regularisation and clipping.
        slots : namespace
            The slots by name, to write in place or assign.
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

    # Stages around the rule.

    def gradient_sign(self, hyper: Any) -> float:
        """Return 1, or -1 for a group that maximizes."""
        return 1.0

    def decay_rate(self, hyper: Any) -> float:
        """Return the fraction of the weights that decays before the update."""
        return hyper.learning_rate * (hyper.weight_decay or 0.0)  # type: ignore[no-any-return]

    def l2_rate(self, hyper: Any) -> float:
        """Return the multiple of the weights that is added to their gradients."""
        return 0.0

    # Properties of the optimizer.

    @property
    def groups(self) -> list[Group[Any]]:
        """The groups, in the order of `build`. Their hyperparameters can be set."""
        raise NotImplementedError

    def decays(self, variable: Place) -> bool:
        """Return whether `weight_decay` applies to the variable."""
        return True

    @classmethod
    def overrides(cls, method: str) -> bool:
        """Return whether the class overrides a method of `Rule`."""
        return getattr(cls, method) is not getattr(Rule, method)
