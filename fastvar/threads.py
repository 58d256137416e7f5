"""How many threads a step uses. Results do not depend on it."""

import operator
import os

from fastvar import kernels

MOST = 1024  # OpenMP ends the process if it cannot start as many threads as it is told
_default = kernels.active.max_threads()  # OMP_NUM_THREADS, or the number of usable processors
_chosen: int | None = None
_forked = False


def set_num_threads(count: int) -> None:
    """Set the number of threads of every later step in this process.

    The default is `FASTVAR_NUM_THREADS`, else `OMP_NUM_THREADS`, else the number of usable processors.
    `threadpoolctl` can limit it further. Results do not depend on it.

    Parameters
    ----------
    count : int
        From 1, which is serial, to 1,024.

    Raises
    ------
    TypeError, ValueError
        If it is not such a number.

    Examples
    --------
    >>> import fastvar as fv
    >>> before = fv.get_num_threads()
    >>> fv.set_num_threads(1)
    >>> fv.get_num_threads()
    1
    >>> fv.set_num_threads(before)
    """
    global _chosen  # noqa: PLW0603
    if isinstance(count, bool) or not hasattr(count, "__index__"):
        raise TypeError(f"set_num_threads: count must be an int, got {type(count).__name__}")
    count = operator.index(count)
    if not 1 <= count <= MOST:
        raise ValueError(f"set_num_threads: count must be from 1 to {MOST}, got {count}")
    _chosen = count


def get_num_threads() -> int:
    """Return how many threads the next step may use."""
    if _forked:
        return 1
    limit: int = kernels.active.max_threads()
    if _chosen is None:
        return limit
    return min(_chosen, limit) if limit < _default else _chosen  # threadpoolctl has lowered the limit


def _after_fork() -> None:
    # OpenMP's threads do not survive a fork. Its runtime would wait for them forever.
    global _forked  # noqa: PLW0603
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

if "FASTVAR_NUM_THREADS" in os.environ:
    try:
        set_num_threads(int(os.environ["FASTVAR_NUM_THREADS"]))
    except ValueError:
        got = os.environ["FASTVAR_NUM_THREADS"]
        raise ImportError(f"fastvar: FASTVAR_NUM_THREADS must be a whole number >= 1, got {got!r}") from None
