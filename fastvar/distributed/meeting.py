"""How the processes of a run, its ranks, meet: they move bytes. What is added is added by fastvar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from fastvar.buffers import Array

Arrays = Sequence[Array]


class Ended(RuntimeError):
    """A rank has ended, or has not come to where the others wait for it."""


class Meeting(Protocol):
    """What ranks do together. All must make the same calls in the same order; `what` names them in errors.

    Attributes
    ----------
    rank : int
        The number of this rank, from 0.
    size : int
        The number of ranks.
    """

    rank: int
    size: int

    def gather(self, payload: bytes, what: str) -> list[bytes]:
        """Return the payloads of all ranks, in their order. They may differ in length."""

    def exchange(self, sent: Mapping[int, Arrays], received: Mapping[int, Arrays], what: str) -> None:
        """Send arrays to each rank, and fill those that each rank sends to this one.

        Parameters
        ----------
        sent, received : mapping of int to sequence of ndarray
            By the number of another rank, C-contiguous arrays. What one rank sends to another must be what the
            other receives from it: as many arrays of the same bytes.
        what : str
            What it is for.
        """

    def abort(self, reason: str) -> None:
        """End all other ranks where they are, and say why."""


class Alone:
    """The meeting of one process."""

    rank: int = 0
    size: int = 1

    def gather(self, payload: bytes, what: str) -> list[bytes]:
        return [payload]

    def exchange(self, sent: Mapping[int, Arrays], received: Mapping[int, Arrays], what: str) -> None:
        pass

    def abort(self, reason: str) -> None:
        pass
