"""Cohorts: the variables that share the scalars of their rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvar.buffers import Array
from fastvar.optimizer.rule import Rule
from fastvar.optimizer.state import State

Scalars = Callable[[Any, int], Sequence[Any]]


class Cohort(NamedTuple):
    """Variables of one group and kind with the same updates so far."""

    number: int  # the number of their pair of group and kind
    places: Any  # their positions: a slice, or an array
    missed: int  # the number of updates in which they had no gradient


class Cohorts:
    """The variables of each group, divided into cohorts that share their scalars.

    All variables of one group and kind share them, unless the rule counts the updates of each variable. Then
    variables without a gradient are in no cohort, and the others are in one with those of the same count and
    numbers.

    Attributes
    ----------
    pairs : list of (int, str)
        The pairs of group and kind.
    number_of : ndarray of int
        The number of the pair of each variable.
    counting : bool
        Whether the rule counts per variable.
    present : list of bool or None
        Which variables had a gradient when the cohorts were made. As long as these are the same, so are the
        cohorts.
    """

    def __init__(self, rule: Rule, state: State) -> None:
        self.counting: bool = rule.counts_per_variable
        self._state = state
        numbers: dict[tuple[int, str], int] = {}
        self.number_of: Array = np.zeros(len(state.variables), np.intp)
        for k, group in enumerate(state.groups):
            for v in group.variables:
                number = numbers.setdefault((k, rule.kind_of(v)), len(numbers))
                self.number_of[state.index[id(v)]] = number
        self.pairs: list[tuple[int, str]] = [*numbers]
        self.present: list[bool] | None = None
        self._numbers = ["missed", *rule.initial_numbers_per_variable()]
        self._cohorts: list[Cohort] = []

    def part(self, present: list[bool]) -> list[int]:
        """Make the cohorts of the variables with a gradient. Return the cohort of each variable, or -1."""
        histories = zip(*(self._state.numbers[name].tolist() for name in self._numbers), strict=True)
        members: dict[tuple[int, Any], list[int]] = {}
        for i, (number, history) in enumerate(zip(self.number_of.tolist(), histories, strict=True)):
            if present[i]:
                members.setdefault((number, history), []).append(i)
        self._cohorts = [
            Cohort(number, _positions(those), int(history[0])) for (number, history), those in members.items()
        ]
        cohort_of = [-1] * len(present)
        for cohort, those in enumerate(members.values()):
            for i in those:
                cohort_of[i] = cohort
        return cohort_of

    def formulas(self, of_pairs: list[Scalars], hyper: list[Any]) -> list[tuple[Scalars, Any]]:
        """Return for each cohort the function that returns its scalars, and its hyperparameters."""
        if not self.counting:
            return [*zip(of_pairs, hyper, strict=True)]
        alone = [sum(cohort.number == k for cohort in self._cohorts) == 1 for k in range(len(of_pairs))]
        result = []
        for number, places, missed in self._cohorts:
            formula = of_pairs[number]
            if alone[number] and not missed:
                hyper[number].places = places
            else:
                formula = _of_cohort(formula, places, missed)
            result.append((formula, hyper[number]))
        return result


def _positions(members: list[int]) -> slice | Array:
    """Return sorted positions as the fastest index of an array."""
    first, last = members[0], members[-1]
    return slice(first, last + 1) if last - first + 1 == len(members) else np.array(members)


def _of_cohort(formula: Scalars, places: Any, missed: int) -> Scalars:
    """Return the function that returns the scalars of a cohort at an update."""

    def scalars(hyper: Any, t: int) -> Sequence[Any]:
        hyper.places = places
        return formula(hyper, t - missed)

    return scalars
