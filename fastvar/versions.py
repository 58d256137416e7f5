"""Which releases of a framework an adapter supports."""

import re

Release = tuple[int, int]


def check(owner: str, library: str, version: str, oldest: Release, following: Release) -> None:
    """Raise ImportError, which names the range, if a version is not from `oldest` to before `following`."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not oldest <= tuple(map(int, numbers.groups())) < following:
        first, end = (".".join(map(str, each)) for each in (oldest, following))
        raise ImportError(f"{owner}: needs {library}>={first},<{end}, found {version}")
