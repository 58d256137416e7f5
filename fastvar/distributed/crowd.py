"""Ranks as threads of one process: to try a program, and to test it, without MPI."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from fastvar.distributed.meeting import Arrays, Ended

T = TypeVar("T")


class _Square:
    """What all threads share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.brought: list[Any] = [None] * size  # what each rank brings to a meeting
        self.barrier = threading.Barrier(size)
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
        with self._meeting(payload, what) as payloads:
            return [*payloads]

    def exchange(self, sent: Mapping[int, Arrays], received: Mapping[int, Arrays], what: str) -> None:
        with self._meeting(sent, what) as of_ranks:
            for rank, arrays in received.items():
                for array, other in zip(arrays, of_ranks[rank][self.rank], strict=True):
                    array.reshape(-1).view(np.uint8)[...] = other.reshape(-1).view(np.uint8)

    @contextlib.contextmanager
    def _meeting(self, brought: Any, what: str) -> Iterator[list[Any]]:
        """Give what all bring. They leave together, before anyone brings something else."""
        self._square.brought[self.rank] = brought
        self._wait(what)
        yield self._square.brought
        self._wait(what)

    def _wait(self, what: str) -> None:
        try:
            self._square.barrier.wait(self._timeout)
        except threading.BrokenBarrierError:
            raise Ended(self._square.failed or f"not all ranks have come to {what} in time") from None

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
