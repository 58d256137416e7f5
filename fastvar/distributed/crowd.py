"""Ranks as threads of one process: to try a program, and to test it, without MPI."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastvar import kernels
from fastvar.distributed.meeting import Arrays, Ended

T = TypeVar("T")
Exchanged = tuple[Mapping[int, Arrays], Mapping[int, Arrays]]  # what a rank sends, and where it wants the others'


class _Square:
    """What all threads share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.brought: list[Any] = [None] * size  # what each rank brings to a meeting
        self.missing = size  # ranks that have not come yet
        self.results: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(size)]
        self.failed: str | None = None
        self.lock = threading.Lock()

    def fail(self, reason: str) -> None:
        """Let every thread that waits, or comes to wait, end. The first reason stays."""
        with self.lock:
            self.failed = self.failed or reason
        for result in self.results:
            result.put(None)


class Member:
    """The meeting of one of the threads."""

    def __init__(self, square: _Square, rank: int, timeout: float) -> None:
        self.rank, self.size = rank, square.size
        self._square, self._timeout = square, timeout

    def gather(self, payload: bytes, what: str) -> list[bytes]:
        return [*self._meet(payload, what, tuple)]

    def exchange(self, sent: Mapping[int, Arrays], received: Mapping[int, Arrays], what: str) -> None:
        self._meet((sent, received), what, _copy)

    def _meet(self, brought: Any, what: str, act: Callable[[Sequence[Any]], T]) -> T:
        """Return what comes of all that is brought. Who comes last acts for all, so that each waits once."""
        square = self._square
        square.brought[self.rank] = brought
        with square.lock:
            square.missing -= 1
            last = not square.missing and not square.failed
        if last:
            square.missing = square.size
            made = act(square.brought)
            for result in square.results:
                result.put(made)
        try:
            mine: T = square.results[self.rank].get(timeout=self._timeout)
        except queue.Empty:
            square.fail(f"not all ranks have come to {what} in time")
        if square.failed:
            raise Ended(square.failed)
        return mine

    def abort(self, reason: str) -> None:
        self._square.fail(f"rank {self.rank} has ended: {reason}")


def _copy(of_ranks: Sequence[Exchanged]) -> None:
    """Copy all that ranks send to where it is received."""
    for rank, (_, received) in enumerate(of_ranks):
        for sender, arrays in received.items():
            kernels.copy(arrays, of_ranks[sender][0][rank])


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
