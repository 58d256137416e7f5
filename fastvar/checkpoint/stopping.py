"""Signals that ask this process to stop: SIGTERM, and SIGUSR1, which batch systems send some time before it.

While a `Listener` is started, these signals do not end the process. The previous handlers are still called, and
are put back when the last listener stops.
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
_fork = threading.local()  # the signal mask of a thread before it forks


class Listener:
    """Records whether a signal to stop has arrived since it was started.

    Attributes
    ----------
    called : bool
    started : bool
        Whether it has been started; stopping it does not change this.
    """

    def __init__(self) -> None:
        self.called: bool = False
        self.started: bool = False

    def start(self) -> None:
        """Listen. Only the main thread can set handlers; in others this works if they are set already."""
        _listeners.add(self)
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before is not None and before is not _handlers.get(number):  # None: not set by Python
                    _handlers[number] = _Handler(number, before)
        self.started = bool(_handlers)

    def stop(self) -> None:
        """Stop listening; `called` keeps its value."""
        _listeners.discard(self)
        if not _listeners:
            _restore()


class _Handler:
    """Tells all listeners, then calls the previous handler; ends the process only if there are no listeners."""

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
    """Put back the previous handlers, except where the program has set another one meanwhile."""
    for number, handler in list(_handlers.items()):
        current: object = signal.getsignal(number)
        if current is handler:
            with contextlib.suppress(ValueError):  # not the main thread: ours stays, and calls it
                signal.signal(number, handler.before)
                del _handlers[number]


def _before_fork() -> None:
    """Block signals: our handler in the new child would swallow one that comes at once."""
    _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, list(_handlers))


def _after_fork_in_child() -> None:
    for listener in list(_listeners):  # signals end a child, unless it starts a listener itself
        listener.started = False
    _listeners.clear()
    _restore()
    _after_fork()


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
