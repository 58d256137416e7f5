"""Tables as text and as HTML, and numbers as people read them: what objects show at a prompt and in a notebook."""

from __future__ import annotations

import html
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

MOST_ROWS = 60  # a longer table shows its beginning and its end
GAP = "  "


@dataclass(frozen=True, repr=False)
class Table:
    """Rows under headings. It prints as text; a notebook shows HTML, which takes its colours from the page.

    Attributes
    ----------
    title : str
    columns : sequence of str
        The headings. Empty ones are left out if all are.
    rows : sequence of sequence
        Strings, numbers, bools and None. Numbers are aligned right.
    footer : str
        Lines below the rows.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]] = field(default_factory=list)
    footer: str = ""

    def __repr__(self) -> str:
        body = [[_text(value) for value in row] for row in self._shown()]
        head = [[*self.columns]] if any(self.columns) else []
        sizes = [max(map(cells, column)) for column in zip_longest(*head, *body, fillvalue="")]
        if head:
            head.append(["-" * size for size in sizes])
        lines = [
            GAP.join(padded(*each) for each in zip(row, sizes, self._left(), strict=True)).rstrip()
            for row in [*head, *body]
        ]
        return "\n".join(line for line in [self.title, *lines, self.footer] if line)

    def _repr_html_(self) -> str:
        aligned = [f"text-align: {'left' if left else 'right'}; padding: 0 0.6em" for left in self._left()]
        parts = [
            _tag("caption", self.title, "caption-side: top; text-align: left; white-space: nowrap; color: inherit")
        ]
        if any(self.columns):
            heads = (_tag("th", name, style) for name, style in zip(self.columns, aligned, strict=True))
            parts.append(f"<thead><tr>{''.join(heads)}</tr></thead>")
        parts.append("<tbody>")
        for row in self._shown():
            values = (_tag("td", _text(value), style) for value, style in zip(row, aligned, strict=True))
            parts.append(f"<tr>{''.join(values)}</tr>")
        parts.append("</tbody>")
        below = _tag("pre", self.footer) if self.footer else ""
        return f"<div><table>{''.join(parts)}</table>{below}</div>"

    def _shown(self) -> list[Sequence[Any]]:
        hidden = len(self.rows) - MOST_ROWS
        if hidden <= 0:
            return [*self.rows]
        more: list[Any] = [f"... {hidden:,} more", *[""] * (len(self.columns) - 1)]
        return [*self.rows[: MOST_ROWS // 2], more, *self.rows[-MOST_ROWS // 2 :]]

    def _left(self) -> list[bool]:
        """Return for each column whether it is aligned left: whether it holds anything but numbers."""
        kinds = [{type(row[i]) for row in self.rows} - {type(None)} for i in range(len(self.columns))]
        return [not kind or not kind <= {int, float} for kind in kinds]


class Shown:
    """An object that prints as its table, and a notebook shows it as one."""

    def _table(self) -> Table:
        raise NotImplementedError

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _tag(name: str, text: str, style: str = "") -> str:
    return f"<{name}{style and f' style={chr(34)}{style}{chr(34)}'}>{html.escape(text)}</{name}>"


def cells(text: str) -> int:
    """Return the columns that a text takes on a terminal: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def padded(text: str, size: int, left: bool) -> str:
    """Return a text with spaces on its right, or on its left if it is aligned right."""
    space = " " * (size - cells(text))
    return text + space if left else space + text


def size(count: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def duration(seconds: float) -> str:
    """Return a time with a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def count(number: int, thing: str) -> str:
    """Return a number of things, as "1 tensor" or "1,000 tensors"."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def moment(seconds: float | None) -> str:
    """Return a time, in seconds since 1970, as date and time of day."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # a damaged state may hold any number
        return str(seconds)
