"""What a master keeps of variables of 16 bits: a tensor beside the weights, `variables/NAME.master`."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import numpy as np

from fastvar.checkpoint.foreign.source import HasSpec
from fastvar.formats import kept_beside
from fastvar.variable import Variable

SUFFIX = ".master"


def masters_of(variables: Mapping[str, Variable]) -> dict[str, Variable]:
    """Return the masters of variables by their names in a file."""
    return {f"variables/{name}{SUFFIX}": v._master for name, v in variables.items() if v._master is not None}


def is_master(name: str, entries: Mapping[str, HasSpec]) -> bool:
    """Return whether a tensor of a file is what a master keeps of another."""
    weights = entries.get(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
    kept = None if weights is None else kept_beside(weights.dtype)
    return kept is not None and entries[name].dtype == kept  # NumPy takes float64 for equal to None


class Masters:
    """The masters of a restore. A file may have others than the program.

    A variable without a master gets that of the file. One whose master the file lacks begins anew at the weights
    of the file.

    Attributes
    ----------
    places : dict of str to Variable
        Those that are in the file, by their names here.
    sources : dict of str to str
        Their names in the file.
    """

    def __init__(
        self,
        variables: Mapping[str, Variable],
        source_of: Callable[[str], str | None],
        entries: Container[str],
    ) -> None:
        self.places: dict[str, Variable] = {}
        self.sources: dict[str, str] = {}
        self._new: list[tuple[Variable, Variable]] = []
        self._lacking: list[Variable] = []
        for name, variable in variables.items():
            source = source_of(f"variables/{name}")
            if source is None or kept_beside(variable.dtype) is None:
                continue
            if f"{source}{SUFFIX}" in entries:
                here = f"variables/{name}{SUFFIX}"
                self.places[here], self.sources[here] = self._place(variable), f"{source}{SUFFIX}"
            elif variable._master is not None:
                self._lacking.append(variable)

    def _place(self, variable: Variable) -> Variable:
        if variable._master is not None:
            return variable._master
        made = Variable(np.zeros(variable.shape, kept_beside(variable.dtype)), False)
        self._new.append((variable, made))
        return made

    def settle(self) -> None:
        """Give the new masters to their variables, after all tensors are read, and make the others anew."""
        for variable, made in self._new:
            variable._take_master(made)
        for variable in self._lacking:
            variable._renew_master()
