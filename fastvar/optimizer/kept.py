"""What an optimizer keeps, as its user sees it."""

from __future__ import annotations

from typing import Any

from fastvar.kernels.atomic import Atomic
from fastvar.masters import writes
from fastvar.optimizer.groups import Group
from fastvar.optimizer.memory import memory
from fastvar.optimizer.overview import overview
from fastvar.optimizer.quantized import Slot
from fastvar.optimizer.rule import Rule
from fastvar.optimizer.state import State
from fastvar.optimizer.trees import variables_of
from fastvar.place import Place
from fastvar.tables import Table
from fastvar.variable import Variable


class Kept(Rule):
    """Base class with the state, and with what shows it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._state = State()

    @property
    def _steps(self) -> int:
        return self._state.count[0]

    @property
    def groups(self) -> list[Group[Variable]]:
        """The groups, in the order of `build`. Their hyperparameters can be set."""
        return [*self._state.groups]

    @property
    def iterations(self) -> int:
        """Number of updates so far. (With accumulation: one in `gradient_accumulation_steps` calls.)"""
        return self._steps // (self.gradient_accumulation_steps or 1)

    @property
    def skipped(self) -> int:
        """Number of steps that `nonfinite="skip"` has skipped."""
        return int(self._state.numbers["skipped"])

    @property
    def variables(self) -> list[Slot]:
        """The slots, moving averages and accumulators, by slot and then by variable."""
        return [v for of_slot in self._state.slots.values() for v in of_slot if v is not None]

    def slot(self, variable: Place, name: str) -> Slot:
        """Return the slot `name` of a variable, such as its "momentum". In 8 bits it is a `Quantized`.

        Raises
        ------
        KeyError
            If there is no such slot.
        """
        slots = self._state.slots.get(name)
        found = slots[self._state.index[id(variable)]] if slots and id(variable) in self._state.index else None
        if found is None:
            raise KeyError(f"{self._owner}: no slot {name!r} of {variable!r}; slots are {[*self._state.slots]}")
        return found  # type: ignore[no-any-return]

    @property
    def _updating(self) -> Any:
        """The optimizer that makes the updates: this one, unless it wraps another."""
        return self

    def memory(self) -> Table:
        """Return a table of the bytes of variables and slots: now, and with each `slot_dtype`.

        Examples
        --------
        >>> import fastvar as fv, numpy as np
        >>> optimizer = fv.optimizers.Adam()
        >>> optimizer.build([fv.Variable(np.zeros((1000, 1000), np.float32), name="w")])
        >>> optimizer.memory().rows[-1]
        ['bytes per parameter', 12.0, 12.0, 8.0, 6.03]
        """
        return memory(self._updating, self._state)

    def _repr_html_(self) -> str:
        return overview(self, self.iterations, self.groups, self.variables)._repr_html_()

    def finalize_variable_values(self, var_list: Any = None) -> None:
        """Overwrite the variables with their moving averages, if `use_ema`. Call it when training ends."""
        if self.use_ema and self._state.numbers.get("averaged", True):
            variables = self._state.variables if var_list is None else variables_of(self._owner, var_list)
            with Atomic([], [pair for v in variables for pair in writes(v.memory, self.slot(v, "average").value)]):
                pass
