"""Progress bars for long work, if tqdm is installed, on a terminal, in the main thread."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

LEAST = 1 << 26  # bytes; less is done before a bar would show, and tqdm is not imported for it

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
def progress(what: str, total: int, unit: str = "B", least: int | None = None) -> Iterator[Advance]:
    """Show how much of `total` is done; the context gives the function that reports progress.

    Parameters
    ----------
    what : str
        Such as "verifying model.h5".
    total : int
        How many units, by default bytes.
    unit : str
        By default "B", bytes.
    least : int, optional
        The least total for which a bar is shown, by default `LEAST`.
    """
    bar = _bar(what, total, unit, LEAST if least is None else least)
    if bar is None:
        yield nothing
        return
    with bar:
        yield bar.update


def nothing(count: int) -> None:
    """Show no progress."""


def _bar(what: str, total: int, unit: str, least: int) -> Any:
    """Return a bar, or None where no bar is wanted or could be seen."""
    if total < least or not _shown.get() or threading.current_thread() is not threading.main_thread():
        return None
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread of tqdm, as the program may fork

    return Bar(total=total, desc=what, unit=unit, unit_scale=unit == "B", delay=1, leave=False, file=sys.stderr)
