"""Text on a terminal, in a pipe or a file: lines and tables as wide as the terminal, in any encoding."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastvar.tables import cells, padded

_GAP = "  "
_LEAST = 16  # columns of a cell that is wrapped
_NARROWEST = 40  # columns; a narrower terminal wraps lines itself


class Lost(Exception):
    """Standard output took no more; `error` says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def width() -> int:
    """Return the columns of the terminal, or those that COLUMNS sets; else lines of any length are not wrapped."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return max(_NARROWEST, shutil.get_terminal_size().columns)
    return sys.maxsize


def write(text: str, flush: bool = False) -> None:
    """Print a text to standard output as it is."""
    try:
        print(text, flush=flush)
    except OSError as error:
        raise Lost(error) from error


def say(text: str, indent: str = _GAP, flush: bool = False) -> None:
    """Print lines of text, wrapped at spaces if they are too long."""
    for line in clean(text).splitlines():
        write("\n".join(_broken(line, width(), indent)), flush)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table. Columns are aligned left, or right if the title begins with ">".

    If it is too wide for the terminal, a long name in the first column has a line of its own. If that is not
    enough, other columns that are aligned left are wrapped, and then all names have lines of their own.
    """
    body = [[clean(cell, newline="\\n") for cell in row] for row in rows]
    head = [title.removeprefix(">") for title in titles]
    sizes = [max(map(cells, column)) for column in zip(head, *body, strict=True)]
    left = [index for index, title in enumerate(titles) if not title.startswith(">")]
    room = width() - len(_GAP) * (len(sizes) - 1)
    for index in left:
        sizes[index] -= max(0, min(sum(sizes) - room, sizes[index] - _LEAST))
    sizes[0] -= max(0, min(sum(sizes) - room, sizes[0] - cells(head[0])))
    for row in [head, ["-" * size for size in sizes], *body]:
        if cells(row[0]) > sizes[0]:
            say(row[0])
            row[0] = ""
        broken = [list(_broken(cell, size)) for cell, size in zip(row, sizes, strict=True)]
        for parts in itertools.zip_longest(*broken, fillvalue=""):
            line = [padded(part, size, i in left) for i, (part, size) in enumerate(zip(parts, sizes, strict=True))]
            write(_GAP.join(line).rstrip())
    write("")


def _broken(text: str, size: int, indent: str = _GAP) -> Iterator[str]:
    """Break a text into lines: at a space, slash, dot or comma, unless that is too far left."""
    while cells(text) > size:
        most = size
        while cells(text[:most]) > size:
            most -= 1
        at = max(text.rfind(mark, 0, most) for mark in " /.,") + 1
        at = at if at > most // 3 else most
        yield text[:at].rstrip()
        text = indent + text[at:].lstrip()
    yield text


def clean(text: str, newline: str = "\n") -> str:
    """Escape characters that could control a terminal: names in files may hold any."""
    return "".join(c if c.isprintable() else newline if c == "\n" else repr(c)[1:-1] for c in text)


def write_json(value: Any) -> None:
    """Print strict JSON: infinities and NaN become strings."""
    write(json.dumps(_plain(value), indent=1))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def metrics(values: dict[str, Any]) -> str:
    """Return metrics in one line."""
    return ", ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
