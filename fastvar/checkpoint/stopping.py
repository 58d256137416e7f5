"""Whether the system has asked this process to stop: by SIGTERM, or by SIGUSR1, which batch systems send before.

While somebody listens, these signals do not end the process. What handled them before is called, too, and takes
over again when nobody listens any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
_handlers: dict[int, _Handler] = {}
_fork = threading.local()  # the signals that a thread held back before it forks


class Listener:
    """Knows whether a signal to stop has come since it began to listen.

    Attributes
    ----------
    called : bool
    started : bool
        Whether it has begun, be it that it has stopped since.
    """

    def __init__(self) -> None:
        self.called = self.started = False

    def start(self) -> None:
        """Listen, unless only the main thread, and this is another, could see to it."""
        _listeners.add(self)
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before is not None and before is not _handlers.get(number):  # None: it is not Python's
                    _handlers[number] = _Handler(number, before)
        self.started = bool(_handlers)

    def stop(self) -> None:
        """Listen no longer; `called` stays as it is."""
        _listeners.discard(self)
        if not _listeners:
            _restore()


class _Handler:
    """Tells all listeners, and then does what was done before; a process that has some is not ended."""

    def __init__(self, number: int, before: Any) -> None:
        self.before = before
        signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        listeners = list(_listeners)
        for listener in listeners:
            listener.called = True
        if callable(self.before):
            self.before(number, frame)
        elif self.before == signal.SIG_DFL and not listeners:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _restore() -> None:
    """Put back what was there before, where nobody has put something else there meanwhile."""
    for number, handler in list(_handlers.items()):
        current: object = signal.getsignal(number)
        if current is handler:
            with contextlib.suppress(ValueError):  # not in the main thread: it stays, and does as before
                signal.signal(number, handler.before)
                del _handlers[number]


def _before_fork() -> None:
    """Hold signals back: one that comes as a child begins would find our handler, and be lost."""
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, list(_handlers))


def _after_fork_in_child() -> None:
    for listener in list(_listeners):  # a child ends when it is asked to, unless it listens itself
        listener.started = False
    _listeners.clear()
    _restore()
    _after_fork()


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
