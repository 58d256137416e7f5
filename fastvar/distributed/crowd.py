"""Ranks as threads of one process: to try a program, and to test it, without MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np

from fastvar.distributed.meeting import Arrays, Ended

T = TypeVar("T")
TICK = 0.1  # seconds after which a thread that waits looks whether the others still run


class _Square:
    """What all threads share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.payloads: list[bytes] = [b""] * size
        self.barrier = threading.Barrier(size)
        self.boxes: list[list[SimpleQueue[list[bytes]]]] = [
            [SimpleQueue() for _ in range(size)] for _ in range(size)
        ]
        self.failed: str | None = None
        self.lock = threading.Lock()

    def fail(self, reason: str) -> None:
        """Let every thread that waits, or comes to wait, end. The first reason stays."""
        with self.lock:
            self.failed = self.failed or reason
        self.barrier.abort()


class Member:
    """The meeting of one of the threads."""

    def __init__(self, square: _Square, rank: int, timeout: float) -> None:
        self.rank, self.size = rank, square.size
        self._square, self._timeout = square, timeout

    def gather(self, payload: bytes, what: str) -> list[bytes]:
        square = self._square
        square.payloads[self.rank] = payload
        self._wait(what)
        payloads = [*square.payloads]
        self._wait(what)  # before a payload is replaced by that of the next meeting
        return payloads

    def _wait(self, what: str) -> None:
        try:
            self._square.barrier.wait(self._timeout)
        except threading.BrokenBarrierError:
            raise Ended(self._square.failed or f"not all ranks have come to {what} in time") from None

    def exchange(self, sent: Sequence[Arrays], received: Sequence[Arrays], what: str) -> None:
        square = self._square
        for rank, arrays in enumerate(sent):
            if rank != self.rank and arrays:
                square.boxes[rank][self.rank].put([array.tobytes() for array in arrays])
        for rank, arrays in enumerate(received):
            if rank != self.rank and arrays:
                for array, data in zip(arrays, self._take(rank, what), strict=True):
                    array[...] = np.frombuffer(data, array.dtype).reshape(array.shape)

    def _take(self, rank: int, what: str) -> list[bytes]:
        waited = 0.0
        while waited < self._timeout:
            try:
                return self._square.boxes[self.rank][rank].get(timeout=TICK)
            except Empty:
                waited += TICK
                if self._square.failed:
                    raise Ended(self._square.failed) from None
        raise Ended(f"rank {rank} has not come to {what} in {self._timeout} seconds")

    def abort(self, reason: str) -> None:
        self._square.fail(f"rank {self.rank} has ended: {reason}")


def run(size: int, program: Callable[[Member], T], timeout: float) -> list[T]:
    """Run a program in as many threads as there are ranks. Return what it returns on each.

    If it raises an error on some, the others end where they wait for them, and the first error is raised.
    """
    square = _Square(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            results[rank] = program(Member(square, rank, timeout))
        except BaseException as error:
            errors.append(error)
            square.fail(f"rank {rank} has ended: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=one, args=(rank,), name=f"rank {rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, Ended)), errors[0])
    return results
