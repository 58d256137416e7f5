"""Several threads at one job: saving, verifying, restoring."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from fastvar import threads

T = TypeVar("T")


class Turns(Generic[T]):
    """Items that several threads take in turn; after an error in one of them, there are no more."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()
        self._busy: set[int] = set()  # threads that have an item

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        thread = threading.get_ident()
        with self._lock:
            self._busy.discard(thread)
            item = next(self._items)
            self._busy.add(thread)
            return item

    def end(self) -> None:
        """Let nobody have another item; the calling thread is done with its own."""
        with self._lock:
            self._items = iter(())
            self._busy.discard(threading.get_ident())

    def end_all(self) -> None:
        """The same, and wait until every thread is done with its item, whatever interrupts that."""
        interrupt = None
        while True:
            try:
                self.end()
                if not self._busy:
                    break
                time.sleep(0.001)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


def share(items: Iterable[T], work: Callable[[Turns[T]], object], most: int) -> None:
    """Let `work` take items until there are none, at once in so many threads at most as steps use.

    When it returns, or raises what one of them did, none of them is at work any more.

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
        try:
            with contextlib.suppress(RuntimeError):  # no thread is to be had: with those there are, then
                for _ in range(more):
                    futures.append(pool.submit(one))
            one()
            for future in futures:
                future.result()
        except BaseException:  # interrupts, too: what the others read or write must not be closed under them
            turns.end_all()
            raise
