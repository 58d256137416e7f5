"""Several threads at one job: saving, verifying, restoring."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from fastvar import threads
from fastvar.kernels.atomic import Uninterrupted

T = TypeVar("T")

_SLICE = 2e-4  # seconds for which a helper works at a time,
_PAUSE = 16  # and how many times as long it then pauses


class WorkQueue(Generic[T]):
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
        """The same, and wait until every thread is done with its item."""
        self.end()
        while self._busy:
            time.sleep(0.001)


class Worker(threading.Thread):
    """A thread that does some work beside the main one.

    Waiting for it may be interrupted, and repeated: after Ctrl-C in `join` or `is_alive` of Python 3.11, a thread
    passes for ended, and in what waits for a condition, KeyboardInterrupt may become RuntimeError.

    Attributes
    ----------
    awaited : Event
        Set when somebody waits for its end, so that it need not be `throttled` any more.
    error : BaseException or None
        What the work raised.
    """

    def __init__(self, work: Callable[[], object], name: str = "fastvar-save", *, awaited: bool = False) -> None:
        super().__init__(name=name)
        self._work, self._running = work, threading.Lock()
        self.error: BaseException | None = None
        self.awaited = threading.Event()
        if awaited:
            self.awaited.set()

    def start(self) -> None:
        """Begin; RuntimeError if no thread is to be had."""
        with Uninterrupted(), contextlib.ExitStack() as failing:
            self._running.acquire()
            failing.callback(self._running.release)
            super().start()
            failing.pop_all()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error
        finally:
            del self._work  # and with it what it belongs to
            self._running.release()

    @property
    def working(self) -> bool:
        return self._running.locked()

    def wait(self) -> None:
        """Wait for the end of the work."""
        with Uninterrupted():
            self.awaited.set()
        with self._running:
            pass


def work_in_parallel(items: Iterable[T], work: Callable[[WorkQueue[T]], object], most: int) -> None:
    """Let `work` take items until there are none, at once in so many threads at most as steps use.

    When it returns, or raises what one of them did, none of them is at work any more.

    Only the main thread is helped. Others, such as that of a background save, work alone: they leave the
    processors to the training. So does the main thread when no thread can be started any more, such as while the
    program ends, and where the system reads and writes only at the one place of a file.
    """
    turns = WorkQueue(items)

    def one() -> None:
        try:
            work(turns)
        finally:
            turns.end()

    helped = threading.current_thread() is threading.main_thread() and hasattr(os, "preadv")
    more = min(most, threads.get_num_threads()) - 1 if helped else 0
    if more < 1:
        one()
        return
    helpers, ending = [Worker(one, f"fastvar-io-{k}", awaited=True) for k in range(more)], Uninterrupted()
    try:
        with contextlib.suppress(RuntimeError):  # no thread is to be had: with those there are, then
            for helper in helpers:
                helper.start()
        one()
        for helper in helpers:
            helper.wait()
    except BaseException:  # interrupts, too: what the others read or write must not be closed under them
        with ending:
            turns.end_all()
            helpers.clear()
        raise
    errors = [helper.error for helper in helpers if helper.error is not None]
    with ending:
        del helper
        helpers.clear()  # Python would lose an interrupt in what it calls at the end of threads
    if errors:
        raise errors[0]


def throttled(items: Iterable[T]) -> Iterator[T]:
    """Walk over many items with which little is to be done in Python; a `Worker` pauses for most of the time.

    Python lets a thread have the GIL for 5 ms, in which a step that has released it would stand still.
    """
    helper = threading.current_thread()
    if not isinstance(helper, Worker) or helper.awaited.is_set():
        yield from items
        return
    began = time.thread_time()
    for item in items:
        yield item
        took = time.thread_time() - began
        if took > _SLICE:
            helper.awaited.wait(_PAUSE * took)
            began = time.thread_time()
