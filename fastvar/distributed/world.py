"""The ranks of a run: who they are, and that they go through it together."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from fastvar.checkpoint.stopping import Listener
from fastvar.distributed import crowd, mpi
from fastvar.distributed.meeting import Alone, Ended, Meeting

T = TypeVar("T")


class World:
    """The ranks of a run, as a context manager; `world` and `simulate` make it.

    Leaving the block waits for all other ranks. An error in it ends them all, and says which rank had it.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        The number of processes.
    stopping : bool
        Whether any of them has been asked to stop, by SIGTERM or SIGUSR1. All learn of it at the same step.
    """

    def __init__(self, meeting: Meeting) -> None:
        self.meeting: Meeting = meeting
        self.stopping: bool = False
        self._listener = Listener()

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""
        return self.meeting.rank

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.meeting.size

    def agree(self, what: str, **mine: Any) -> list[dict[str, Any]]:
        """Return what each rank says, as JSON values where ranks differ.

        All must have come to the same place in the program.

        Raises
        ------
        Ended
            If a rank has come to another place.
        """
        said = {"what": what, "stopping": self._listener.called, **mine}
        own = json.dumps(said).encode()
        payloads = self.meeting.gather(own, what)
        if payloads.count(own) == len(payloads):  # as in most cases
            all_said = [said] * len(payloads)
        else:
            values = {payload: json.loads(payload) for payload in {*payloads}}
            all_said = [values[payload] for payload in payloads]
        for rank, one in enumerate(all_said):
            if one["what"] != all_said[0]["what"]:
                raise Ended(f"rank {rank} has come to {one['what']}, and rank 0 to {all_said[0]['what']}")
        self.stopping = self.stopping or any(one["stopping"] for one in all_said)
        return all_said

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.stop()
        if error is None or (isinstance(error, SystemExit) and not error.code):
            try:
                self.agree("the end")
            except Ended as ended:
                self.meeting.abort(str(ended))
                raise
            return
        if self.size > 1 and not isinstance(error, SystemExit | Ended):
            traceback.print_exception(kind, error, trace)
        self.meeting.abort(f"{type(error).__name__}: {error}")

    def __repr__(self) -> str:
        return f"<fastvar.distributed.World: rank {self.rank} of {self.size}>"


def world(timeout: float = 600.0) -> World:
    """Return the ranks that an MPI launcher has started, such as `mpirun -n 4 python train.py`; else one.

    Parameters
    ----------
    timeout : float
        Seconds for which a rank waits for another before it ends all with an error, > 0. Choose more than any
        step and any save takes.

    Raises
    ------
    ImportError
        If a launcher has started this process, and there is no mpi4py.

    Examples
    --------
    >>> import fastvar.distributed as fd
    >>> with fd.world() as world:
    ...     world.rank, world.size
    (0, 1)
    """
    if not timeout > 0:
        raise ValueError(f"world: timeout must be > 0, got {timeout!r}")
    return World(mpi.Processes(timeout) if mpi.launched() else Alone())


def simulate(size: int, program: Callable[[World], T], timeout: float = 60.0) -> list[T]:
    """Run a program as `size` ranks in threads of this process, without MPI. Return what each returns.

    It is for trying and testing programs: the results have the same bits as those of real ranks.

    Parameters
    ----------
    size : int
        The number of ranks, >= 1.
    program : callable
        It is called with the `World` of each rank.
    timeout : float
        Seconds for which a rank waits for another.

    Raises
    ------
    Exception
        The first error that a rank raises.

    Examples
    --------
    >>> import fastvar.distributed as fd
    >>> fd.simulate(3, lambda world: world.rank)
    [0, 1, 2]
    """
    if size < 1:
        raise ValueError(f"simulate: size must be >= 1, got {size}")

    def one(meeting: Meeting) -> T:
        with World(meeting) as here:
            return program(here)

    return crowd.run(size, one, timeout)
