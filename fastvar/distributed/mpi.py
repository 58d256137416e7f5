"""The meeting of the processes that an MPI launcher has started. The only place that imports mpi4py.

Messages are sent from each rank to each other directly, and never block: so a rank always knows for whom it waits.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.distributed.meeting import Arrays, Ended
from fastvar.tables import count

MOST = 1 << 30  # bytes of a message
TAGS = 1 << 15  # the least number of tags that MPI guarantees
EAGER = 2e-3  # seconds for which a rank that waits asks without a pause
PAUSE = 5e-5
SIZES = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "SLURM_STEP_NUM_TASKS",
)  # what launchers tell the processes they start


def launched() -> int:
    """Return how many processes an MPI launcher has started, this one among them; 0 if there was no launcher."""
    return max((int(os.environ[name]) for name in SIZES if os.environ.get(name, "").isdigit()), default=0)


class Processes:
    """The meeting of all ranks of `MPI.COMM_WORLD`.

    Parameters
    ----------
    timeout : float
        Seconds for which it waits for another rank.

    Raises
    ------
    ImportError
        If there is no mpi4py.
    RuntimeError
        If mpi4py uses another MPI than the launcher is of, so that the processes do not find each other.
    """

    def __init__(self, timeout: float) -> None:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError(f"fastvar.distributed needs mpi4py ({error}): pip install 'mpi4py>=4.0'") from None
        self._mpi: Any = MPI
        self._ranks = MPI.COMM_WORLD.Dup()
        self.rank: int = self._ranks.rank
        self.size: int = self._ranks.size
        self._timeout = timeout
        self._meetings = 0
        if self.size == 1 < launched():
            raise RuntimeError(
                f"fastvar.distributed: the launcher has started {count(launched(), 'rank')}, but mpi4py finds "
                f"only this one: its MPI is {MPI.get_vendor()[0]}, and the launcher is of another"
            )

    def _next_tag(self) -> int:
        self._meetings += 1
        return self._meetings % TAGS

    def gather(self, payload: bytes, what: str) -> list[bytes]:
        tag, ranks = self._next_tag(), self._ranks
        others = [rank for rank in range(self.size) if rank != self.rank]
        sending = [ranks.Isend([payload, self._mpi.BYTE], rank, tag) for rank in others]
        payloads: dict[int, Any] = {self.rank: payload}
        status = self._mpi.Status()

        def arrived() -> bool:
            while message := ranks.Improbe(self._mpi.ANY_SOURCE, tag, status):
                data = bytearray(status.Get_count(self._mpi.BYTE))
                message.Recv([data, self._mpi.BYTE])
                payloads[status.Get_source()] = bytes(data)
            return len(payloads) == self.size

        self._wait(arrived, lambda: [rank for rank in others if rank not in payloads], what)
        self._finish(dict(zip(others, sending, strict=True)), what)
        return [payloads[rank] for rank in range(self.size)]

    def exchange(self, sent: Mapping[int, Arrays], received: Mapping[int, Arrays], what: str) -> None:
        tag, ranks = self._next_tag(), self._ranks
        requests: list[tuple[int, Any]] = []
        for rank in self._in_turn(received):
            messages = [part for array in received[rank] for part in _messages(array)]
            requests += [(rank, ranks.Irecv([part, self._mpi.BYTE], rank, tag)) for part in messages]
        for rank in self._in_turn(sent):
            messages = [part for array in sent[rank] for part in _messages(array)]
            requests += [(rank, ranks.Isend([part, self._mpi.BYTE], rank, tag)) for part in messages]
        pending = [request for _, request in requests]
        missing = [rank for rank, _ in requests]
        self._wait(
            lambda: bool(self._mpi.Request.Testall(pending)),
            lambda: sorted({rank for rank, request in zip(missing, pending, strict=True) if not request.Test()}),
            what,
        )

    def _in_turn(self, ranks: Iterable[int]) -> list[int]:
        """Sort ranks, beginning with the next, so that not all send to the same one first."""
        return sorted(ranks, key=lambda rank: (rank - self.rank) % self.size)

    def _finish(self, requests: dict[int, Any], what: str) -> None:
        """Wait until what has been sent is on its way."""
        pending = [*requests.values()]
        self._wait(
            lambda: bool(self._mpi.Request.Testall(pending)),
            lambda: [rank for rank, request in requests.items() if not request.Test()],
            what,
        )

    def _wait(self, done: Any, missing: Any, what: str) -> None:
        """Wait until `done()`. After too long, raise an error that names the ranks of `missing()`."""
        begin = time.monotonic()
        while not done():
            waited = time.monotonic() - begin
            if waited > self._timeout:
                late = ", ".join(f"rank {rank}" for rank in missing())
                raise Ended(f"{late} has not come to {what} in {self._timeout:g} seconds")
            if waited > EAGER:
                time.sleep(PAUSE)
            else:
                os.sched_yield()

    def abort(self, reason: str) -> None:
        print(f"fastvar.distributed: rank {self.rank} of {self.size}: {reason}", file=sys.stderr, flush=True)
        self._mpi.COMM_WORLD.Abort(1)


def _messages(array: Array) -> list[Array]:
    """Return the bytes of an array in parts that MPI can send."""
    flat = array.reshape(-1).view(np.uint8)
    return [flat[k : k + MOST] for k in range(0, len(flat), MOST)]
