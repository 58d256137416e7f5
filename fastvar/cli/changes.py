"""What a diff found, on a screen: NaN and infinities first, and apart what had no numbers to compare with."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastvar import tables
from fastvar.checkpoint.differences import Change, Difference
from fastvar.cli import screen


def as_json(found: Difference) -> dict[str, Any]:
    """Return the difference as a dict."""
    changes = [dataclasses.asdict(change) | {"relative": change.relative} for change in found.changed]
    return dataclasses.asdict(found) | {"changed": changes}


def show(found: Difference) -> None:
    """Print the difference."""
    broken = [change for change in found.changed if not change.finite]
    fresh = [change for change in found.changed if change.finite and not change.before]
    plain = [change for change in found.changed if change.finite and change.before]
    if broken:
        titles = ["not finite", ">norm before", ">norm after", ">NaN, inf before", ">after"]
        broken.sort(key=lambda change: -change.nonfinite_after)
        counts = [[f"{c.nonfinite_before:,}", f"{c.nonfinite_after:,}"] for c in broken]
        screen.table(titles, [[*_norms(c), *count] for c, count in zip(broken, counts, strict=True)])
    if plain:
        plain.sort(key=lambda change: -change.relative)
        titles = ["changed", ">norm before", ">norm after", ">difference", ">relative"]
        screen.table(titles, [[*_norms(c), f"{c.difference:.4g}", f"{c.relative:.3g}"] for c in plain])
    if fresh:
        fresh.sort(key=lambda change: -change.difference)
        screen.table(["zero before", ">norm after"], [[c.name, f"{c.after:.4g}"] for c in fresh])
    for what in ("added", "removed", "reshaped", "state"):
        for name in getattr(found, what):
            screen.say(f"{what}: {name}")
    screen.say(f"{tables.count(len(found.changed), 'tensor')} changed, {len(found.equal):,} equal")


def _norms(change: Change) -> list[str]:
    return [change.name, f"{change.before:.4g}", f"{change.after:.4g}"]
