"""Several threads at one job: saving, verifying, restoring."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from fastvar import threads

T = TypeVar("T")


class Turns(Generic[T]):
    """Items that several threads take in turn; after an error in one of them, there are no more."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)

    def end(self) -> None:
        self._items = iter(())


def share(items: Iterable[T], work: Callable[[Turns[T]], object], most: int) -> None:
    """Let `work` take items until there are none, at once in so many threads at most as steps use.

    Only the main thread is helped. Others, such as that of a background save, work alone: they leave the
    processors to the training. So does the main thread once the program ends, when no thread can be started any
    more, and where the system reads and writes only at the one place of a file.
    """
    turns = Turns(items)

    def one() -> None:
        try:
            work(turns)
        finally:
            turns.end()

    main = threading.main_thread()
    helped = threading.current_thread() is main and main.is_alive() and hasattr(os, "preadv")
    more = min(most, threads.get_num_threads()) - 1 if helped else 0
    if more < 1:
        one()
        return
    with ThreadPoolExecutor(more, "fastvar-io") as pool:
        futures = []
        with contextlib.suppress(RuntimeError):  # no thread is to be had: alone, then
            futures += [pool.submit(one) for _ in range(more)]
        one()
        for future in futures:
            future.result()
