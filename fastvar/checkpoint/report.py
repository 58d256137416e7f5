"""The report of a restore, and the error for names that do not match, with suggestions."""

from __future__ import annotations

import collections
import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fastvar.tables import Shown, Table, count

_FEW = 5  # list up to this many names; for more, count those that share a path
_LINES = 10  # lines of each kind in an error
_MANY = 2000  # names that are compared letter by letter to find a similar one


@dataclass(repr=False)
class Restored(Shown):
    """What a restore has read from a file.

    Attributes
    ----------
    path : str
    step : int
        The step at which the file was saved; 0 for an import.
    taken, missing, skipped : list of str
        Names that were restored; that the file lacks; that only the file has.
    refused : list of str
        With `partial`, why an optimizer or another object did not take its saved state.
    hyperparameters : list of str
        Those that differ between the program and the file, with both values.
    kept : bool
        Whether those of the program were kept.
    notes : list of str
        Converted dtypes and, of an import, things in the file that are not tensors.
    """

    path: str
    step: int
    taken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    hyperparameters: list[str] = field(default_factory=list)
    kept: bool = False
    notes: list[str] = field(default_factory=list)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("restored", summary(self.taken))] * bool(self.taken)
        if len(self.missing) <= _FEW:
            like = Like(self.skipped)
            rows += [("not in the file", f"{name}{like.hint(name)}") for name in self.missing]
        else:
            rows.append(("not in the file", summary(self.missing)))
        rows += [("only in the file", summary(self.skipped))] * bool(self.skipped)
        rows += [("refused", text) for text in self.refused]
        whose = "the program's is kept" if self.kept else "the file's is taken"
        rows += [("hyperparameter", f"{text}; {whose}") for text in self.hyperparameters]
        rows += [("note", text) for text in self.notes[:_FEW]]
        more = len(self.notes) - _FEW
        return rows + [("note", f"and {count(more, 'more note')}")] * (more > 0)

    def _table(self) -> Table:
        step = f", step {self.step:,}" if self.step else ""
        return Table(f"{self.path}{step}: {len(self.taken):,} restored", ("", ""), self._rows())

    def __str__(self) -> str:
        return "\n".join([self._table().title, *(f"  {what}: {text}" for what, text in self._rows())])

    __repr__ = __str__


def summary(names: Sequence[str]) -> str:
    """Return the names if they are few, else the beginnings of their paths, with counts."""
    if len(names) <= _FEW:
        return ", ".join(names)
    for depth in (3, 2, 1):
        groups = collections.Counter("/".join(name.split("/")[:depth]) for name in names)
        if len(groups) <= _FEW:
            return ", ".join(f"{group}/... ({n:,})" if n > 1 else group for group, n in groups.items())
    return f"{', '.join(names[:_FEW])} and {len(names) - _FEW:,} more"


class Like:
    """Suggests a name: one with the same ending, or one with similar spelling."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {_bare(name): name for name in names}
        self._by_tail: dict[str, list[str]] = collections.defaultdict(list)
        for name in self._names:
            for parts in (1, 2):
                self._by_tail[_tail(name, parts)].append(name)

    def find(self, name: str) -> str | None:
        """Return the suggestion for a name, or None."""
        here, _, there = name.partition(" (as ")  # of a renamed variable: the name looked for in the file
        name = _bare(there.rstrip(")") or here)
        alike = self._by_tail.get(_tail(name, 2)) if re.search("[/.]", name) else None
        if alike:
            close = difflib.get_close_matches(name, alike[:100], n=1, cutoff=0)
        else:
            names = list(self._names) if len(self._names) <= _MANY else self._by_tail.get(_tail(name, 1), [])
            close = difflib.get_close_matches(name, names[:_MANY], n=1)
        return self._names[close[0]] if close else None

    def hint(self, name: str) -> str:
        """Return ` (it has NAME)`, or an empty string."""
        found = self.find(name)
        return f" (it has {found})" if found else ""


def mismatch(restored: Restored, wrong: Sequence[str], names: Iterable[str], advice: str = "") -> str:
    """Return the message of the error that lists everything that does not match."""
    lines = [f"{restored.path}: does not match what it is restored into; nothing was changed"]
    lines += _listed("mismatched", wrong)
    unused, used = Like(restored.skipped), Like(names)
    hints = [f"{name}{unused.hint(name) or used.hint(name)}" for name in restored.missing[:_LINES]]
    lines += _listed("missing in the file", hints + restored.missing[_LINES:])
    lines += _listed("unexpected in the file", restored.skipped)
    if wrong:
        advice = advice or "name_map={NAME: None} leaves a variable as it is"
    else:
        meant = _common_renaming([(name, unused.find(name)) for name in restored.missing[:_LINES]])
        advice = f"partial=True takes what is there; name_map={meant} renames"
    return "\n".join([*lines, f"  ({advice})"])


def _common_renaming(pairs: Sequence[tuple[str, str | None]]) -> str:
    """Return, as Python code, the one mapping of prefixes that explains all pairs; "" if there is none."""
    prefixes = set()
    for here, there in pairs:
        if " (as " in here:  # there is a name map already
            return ""
        ours, theirs = _bare(here).split("/"), _bare(there or "").split("/")
        while ours and theirs and ours[-1] == theirs[-1]:
            del ours[-1], theirs[-1]
        prefixes.add(("/".join(ours), "/".join(theirs)) if there else ("", ""))
    ((here, there),) = prefixes if len(prefixes) == 1 else {("", "")}
    return repr({here: there}) if here or there else ""


def _listed(what: str, items: Sequence[str]) -> list[str]:
    lines = [f"  {what}: {item}" for item in items[:_LINES]]
    if len(items) > _LINES:
        lines.append(f"  {what}: and {len(items) - _LINES:,} more: {summary(items[_LINES:])}")
    return lines


def _bare(name: str) -> str:
    """Return the name of a variable without the common prefix."""
    return name.removeprefix("variables/")


def _tail(name: str, parts: int) -> str:
    return "/".join(re.split("[/.]", name)[-parts:])
