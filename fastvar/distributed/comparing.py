"""Finding the first difference of two JSON values."""

from __future__ import annotations

from typing import Any


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return where two values differ first, with both values, or None."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            here = f"{path} {key}".strip()
            if key not in one or key not in other:
                return f"{here}: only one has it"
            if found := difference(one[key], other[key], here):
                return found
        return f"{path}: another order" if [*one] != [*other] else None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        found_in = (difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
        return next(filter(None, found_in), None)
    same = one == other or (one != one and other != other)  # noqa: PLR0124: NaN
    return None if same else f"{path}: {one!r} and {other!r}"
