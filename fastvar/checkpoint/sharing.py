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

_SLICE = 2e-4  # seconds for which a helper works at a time,
_PAUSE = 12  # and how many times as long it then pauses


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


class Helper(threading.Thread):
    """A thread that works beside the training, and leaves the GIL to it where it does things `leisurely`.

    Attributes
    ----------
    awaited : Event
        Set when somebody waits for its end, so that it need not be leisurely any more.
    """

    def __init__(self, target: Callable[[], object]) -> None:
        super().__init__(target=target, name="fastvar-save")
        self.awaited = threading.Event()


def leisurely(items: Iterable[T]) -> Iterator[T]:
    """Walk over many items with which little is to be done in Python; a `Helper` pauses for most of the time.

    Python lets a thread have the GIL for 5 ms, in which a step that has released it would stand still.
    """
    helper = threading.current_thread()
    if not isinstance(helper, Helper):
        yield from items
        return
    began = time.thread_time()
    for item in items:
        yield item
        took = time.thread_time() - began
        if took > _SLICE:
            helper.awaited.wait(_PAUSE * took)
            began = time.thread_time()
