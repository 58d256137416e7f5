"""Threads that share the work of a save, a verification or a restore."""

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

_SLICE = 2e-4  # the seconds that a throttled worker works before a pause
_PAUSE = 16  # the length of the pause, as a multiple of the work


class WorkQueue(Generic[T]):
    """Items that several threads take one by one, until there are none or `end` is called."""

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
        """Give out no more items. The calling thread is done with its own."""
        with self._lock:
            self._items = iter(())
            self._busy.discard(threading.get_ident())

    def end_all(self) -> None:
        """Give out no more items, and wait until every thread is done with its own."""
        self.end()
        while self._busy:
            time.sleep(0.001)


class Worker(threading.Thread):
    """A thread that does one piece of work.

    `wait` may be interrupted and called again. `join` may not: after Ctrl-C in `join` or `is_alive`, Python 3.11
    considers the thread ended. While it waits for a condition, it may turn KeyboardInterrupt into RuntimeError.

    Attributes
    ----------
    awaited : Event
        Set when somebody waits for the end of the work, which is then no longer `throttled`.
    error : BaseException or None
        What the work raised.
    """

    def __init__(self, work: Callable[[], object], name: str = "fastvar-save", *, awaited: bool = False) -> None:
        super().__init__(name=name)
        self._work, self._running = work, threading.Lock()
        self.error: BaseException | None = None
        self.awaited: threading.Event = threading.Event()
        if awaited:
            self.awaited.set()

    def start(self) -> None:
        """Begin; RuntimeError if no thread can be started."""
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
            del self._work  # and what it refers to
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
    """Run `work` on a queue of the items in at most `most` threads, and in no more than steps use.

    No thread is at work any more when this returns or raises the first error of one of them.

    Only the main thread starts others. A background save works alone and leaves the processors to the training.
    The main thread works alone, too, when no thread can be started (the program is ending), and where the system
    reads and writes only at the one position of a file.
    """
    queue = WorkQueue(items)

    def one() -> None:
        try:
            work(queue)
        finally:
            queue.end()

    helped = threading.current_thread() is threading.main_thread() and hasattr(os, "preadv")
    more = min(most, threads.get_num_threads()) - 1 if helped else 0
    if more < 1:
        one()
        return
    workers, ending = [Worker(one, f"fastvar-io-{k}", awaited=True) for k in range(more)], Uninterrupted()
    try:
        with contextlib.suppress(RuntimeError):  # no more threads: go on with those that have started
            for worker in workers:
                worker.start()
        one()
        for worker in workers:
            worker.wait()
    except BaseException:  # an interrupt, too: the caller may close the file that the others read or write
        with ending:
            queue.end_all()
            workers.clear()
        raise
    errors = [worker.error for worker in workers if worker.error is not None]
    with ending:
        del worker
        workers.clear()  # Python loses an interrupt that comes while a thread object is deleted
    if errors:
        raise errors[0]


def throttled(items: Iterable[T]) -> Iterator[T]:
    """Yield the items; a `Worker` that nobody waits for pauses most of the time in between.

    Python lets a thread keep the GIL for 5 ms. A step that has released the GIL would wait as long to get it back.
    """
    worker = threading.current_thread()
    if not isinstance(worker, Worker) or worker.awaited.is_set():
        yield from items
        return
    began = time.thread_time()
    for item in items:
        yield item
        took = time.thread_time() - began
        if took > _SLICE:
            worker.awaited.wait(_PAUSE * took)
            began = time.thread_time()
