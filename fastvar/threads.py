"""How many threads a step uses. Results do not depend on it."""

import operator
import os
from pathlib import Path

from fastvar import threadpools
from fastvar.kernels import crew

MOST = crew.most_threads
_chosen: int | None = None
_limit = MOST  # of threadpoolctl


def set_num_threads(count: int) -> None:
    """Set the number of threads of every later step in this process.

    The default is `FASTVAR_NUM_THREADS`, else `OMP_NUM_THREADS`, else the number of usable processors: those that
    the process may run on, within the quota of its control groups (of a container). `threadpoolctl` can limit it
    further. Results do not depend on it.

    Parameters
    ----------
    count : int
        From 1, which is serial, to 256.

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
    return min(_default if _chosen is None else _chosen, _limit)


def usable(cgroups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processors this process may use: those of its affinity, within its control groups' quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([count, MOST, *_quotas(cgroups, root)]))


def _quotas(cgroups: Path, root: Path) -> list[int]:
    """Return the quota of each control group that the process is in, in whole processors."""
    quotas = []
    for line in _read(cgroups).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = next((f for f in (root / controllers, root / "cpu") if controllers and f.exists()), root)
        group = folder / path.lstrip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(folder):
                break
            of = _read(place / "cpu.max").split()  # version 2
            of = of or [*_read(place / "cpu.cfs_quota_us").split(), *_read(place / "cpu.cfs_period_us").split()]
            if len(of) == 2 and of[0].isdigit() and int(of[1]):
                quotas.append(int(of[0]) // int(of[1]))
    return quotas


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _from_environment() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # the others are for nested regions
    return min(int(given), MOST) if given.isdecimal() and int(given) else usable()


def _pool_size() -> int:
    return get_num_threads() if _limit == MOST else _limit


def _set_limit(count: int) -> None:
    # When threadpoolctl takes its limit back, it sets the number that it found.
    global _limit  # noqa: PLW0603
    _limit = MOST
    _limit = count if count < get_num_threads() else MOST


_default = _from_environment()
threadpools.offer(_pool_size, _set_limit)
if "FASTVAR_NUM_THREADS" in os.environ:
    try:
        set_num_threads(int(os.environ["FASTVAR_NUM_THREADS"]))
    except ValueError:
        raise ImportError(
            f"fastvar: FASTVAR_NUM_THREADS must be a whole number >= 1, got {os.environ['FASTVAR_NUM_THREADS']!r}"
        ) from None
