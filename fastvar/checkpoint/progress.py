"""Progress bars on long work: with tqdm, on a terminal, in the main thread, and never for short work."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

LEAST = 1 << 26  # bytes: less is done before a bar could help, and tqdm need not be imported for it

Advance = Callable[[int], object]

_shown: contextvars.ContextVar[bool] = contextvars.ContextVar("fastvar_progress", default=True)


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Show no progress bars inside this context.

    Examples
    --------
    >>> import fastvar as fv
    >>> with fv.checkpoint.progress.hidden():
    ...     pass  # saves and restores
    """
    token = _shown.set(False)
    try:
        yield
    finally:
        _shown.reset(token)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """Show how much of `total` bytes is done, told through the function that this context gives.

    Parameters
    ----------
    what : str
        Such as "verifying model.h5".
    total : int
        Bytes.
    """
    bar = _bar(what, total)
    if bar is None:
        yield nothing
        return
    with bar:
        yield bar.update


def nothing(count: int) -> None:
    """Show no progress."""


def _bar(what: str, total: int) -> Any:
    """Return a bar, or None where none is wanted, or would be seen."""
    if total < LEAST or not _shown.get() or threading.current_thread() is not threading.main_thread():
        return None
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread of tqdm's: a program may fork

    return Bar(total=total, desc=what, unit="B", unit_scale=True, delay=1, leave=False, file=sys.stderr)
