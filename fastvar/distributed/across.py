"""A plan whose sums, and whose verdict on a step, are those of all ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.distributed.meeting import Meeting
from fastvar.kernels.stages import BLOCK
from fastvar.kernels.units import sum_in_order
from fastvar.optimizer.planning import Found


class Across:
    """A rank's plan on its parts of the variables. What it does not have here, the plan does.

    Parameters
    ----------
    plan : Plan
        The plan of this rank.
    meeting : Meeting
        The ranks.
    lengths : ndarray of int
        The elements of the gradient of each variable, which may change from step to step. Ranks have contiguous
        ranges of their concatenation, cut between blocks.
    mine : sequence of slice
        This rank's part of each variable.
    for_all : bool
        Whether the rule makes one number of the sums of all variables. Otherwise each rank needs only the sums of
        those that it has.
    """

    def __init__(self, plan: Any, meeting: Meeting, lengths: Array, mine: Sequence[slice], for_all: bool) -> None:
        self._plan, self._meeting, self._for_all = plan, meeting, for_all
        self._lengths = lengths
        self._here = [part.stop > part.start for part in mine]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def sums_of_squares(self, each: bool, threads: int = 1, scale: float = 1.0) -> Array:
        """Return the sums of squares of the gradient of each variable, or of all, from the blocks of all ranks."""
        mine = self._plan.squares_of_blocks(threads, scale)
        blocks = np.frombuffer(b"".join(self._meeting.gather(mine.tobytes(), "the norms of gradients")))
        of_sums = np.split(blocks, np.cumsum(-(-self._lengths // BLOCK))[:-1]) if each else [blocks]
        with np.errstate(all="ignore"):
            return np.array([sum_in_order(one) for one in of_sums])

    def sums(self, scalars: Sequence[Sequence[float]], threads: int = 1, scale: float = 1.0) -> Array:
        """Return the requested sums of the variables, which are not cut."""
        mine: Array = self._plan.sums(scalars, threads, scale)
        if not self._for_all:
            return mine
        rows = self._meeting.gather(mine[self._here].tobytes(), "the sums of variables")
        mine[self._lengths > 0] = np.frombuffer(b"".join(rows)).reshape(-1, mine.shape[1])
        return mine

    def run(
        self, scalars: Any, threads: int = 1, count: Any = None, commits: Any = None, guard: bool = False
    ) -> Found:
        """Run the plan. With `guard`, nothing changes on any rank if one finds something that is not finite."""
        found: Found = self._plan.run(scalars, threads, count, commits, guard, self.agree if guard else None)
        return found

    def agree(self, found: Found) -> Found:
        """Return what any rank has found."""
        of_ranks = self._meeting.gather(json.dumps(found).encode(), "whether all numbers are finite")
        bad: dict[int, bool] = {}
        for of_rank in {*of_ranks}:
            for i, by_gradient in json.loads(of_rank):
                bad[i] = bad.get(i, False) or by_gradient
        return sorted(bad.items())
