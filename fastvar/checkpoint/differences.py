"""What changed between two files of tensors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint.anyfile import exported, open_any, parts, values_of
from fastvar.checkpoint.bookkeeping import is_reserved
from fastvar.checkpoint.foreign import Foreign
from fastvar.checkpoint.foreign.source import Opaque
from fastvar.checkpoint.progress import progress
from fastvar.checkpoint.reader import File

_SHORT = 60  # characters of a value
_LABEL = 80  # characters of a name in the plot
_WIDE = 100  # a ratio of changes that needs a logarithmic axis


@dataclass(frozen=True)
class Change:
    """A tensor that changed.

    Attributes
    ----------
    name : str
    before, after, difference : float
        The norms of both, of their finite numbers, and of the difference.
    nonfinite_before, nonfinite_after : int
        How many numbers are NaN or infinite.
    """

    name: str
    before: float
    after: float
    difference: float
    nonfinite_before: int = 0
    nonfinite_after: int = 0

    @property
    def finite(self) -> bool:
        """Whether all numbers of both are finite."""
        return not self.nonfinite_before and not self.nonfinite_after

    @property
    def relative(self) -> float:
        """The norm of the difference, relative to the norm before."""
        return self.difference / self.before if self.before else math.inf


@dataclass
class Difference:
    """What changed from one file to another; false if nothing has changed.

    Attributes
    ----------
    before, after : str
        The paths.
    changed : list of Change
        Tensors whose bits differ.
    equal, added, removed : list of str
        Names of tensors.
    reshaped : list of str
        Tensors whose shape or dtype changed, with both.
    state : list of str
        What differs in the state; the notes of a manager, such as the time of the save, are left out.
    """

    before: str
    after: str
    changed: list[Change] = field(default_factory=list)
    equal: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    state: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any([self.changed, self.added, self.removed, self.reshaped, self.state])


def diff(
    before: str | os.PathLike[str], after: str | os.PathLike[str], *, opaque: Opaque | None = None
) -> Difference:
    """Return what changed between two checkpoints. Every tensor is verified.

    Either may be a file of another library; then variables are compared by their own names, and state is not.
    One tensor of each file is in memory at a time.

    Parameters
    ----------
    before, after : str or path-like
        The files.
    opaque : dtype or str, or mapping of str to these or None, optional
        The dtype of opaque bytes in files of other libraries; see `load_foreign`.

    Raises
    ------
    CheckpointError
        If a file is damaged, or of no known format.
    OSError
        If it cannot be opened.

    Examples
    --------
    >>> import fastvar as fv, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> w = fv.Variable([3.0, 4.0], name="w")
    >>> old = fv.Checkpoint(variables=[w]).save(folder + "/old.h5")
    >>> w += [0.0, 1.0]
    >>> new = fv.Checkpoint(variables=[w]).save(folder + "/new.h5")
    >>> change = fv.checkpoint.diff(old, new).changed[0]
    >>> change.name, change.before, change.difference, change.relative
    ('variables/w', 5.0, 1.0, 0.2)
    """
    with open_any(before, opaque) as one, open_any(after, opaque) as two:
        found = Difference(one.path, two.path)
        if isinstance(one, File) and isinstance(two, File):
            ours, theirs = {name: name for name in one.entries}, {name: name for name in two.entries}
            found.state = list(_state_changes(one.state, two.state))
        else:
            ours, theirs = exported(one), exported(two)
        found.removed = [name for name in ours if name not in theirs]
        found.added = [name for name in theirs if name not in ours]
        common = [name for name in ours if name in theirs]
        total = sum(_length(one, ours[name]) for name in common)
        with progress("comparing", total) as advance:
            for name in common:
                _compare(found, name, (one, ours[name]), (two, theirs[name]))
                advance(_length(one, ours[name]))
    return found


def _length(file: File | Foreign, name: str) -> int:
    entry = file.entries[name]
    return entry.dtype.itemsize * math.prod(entry.shape)


def _compare(
    found: Difference, name: str, before: tuple[File | Foreign, str], after: tuple[File | Foreign, str]
) -> None:
    old, new = (file.entries[own] for file, own in (before, after))
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        found.reshaped.append(f"{name}: {old.dtype}{list(old.shape)}, then {new.dtype}{list(new.shape)}")
        return
    one, two = before[0].read(before[1]), after[0].read(after[1])
    if np.array_equal(_bits(one), _bits(two)):
        found.equal.append(name)
        return
    difference = 0.0
    with np.errstate(all="ignore"):  # infinities and NaNs then show in the result
        for x, y in parts(one, two):
            step = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0, y - x)
            difference = math.hypot(difference, float(np.linalg.norm(step)))
    x, y = values_of(one), values_of(two)
    found.changed.append(Change(name, x.norm, y.norm, difference, x.nonfinite, y.nonfinite))


def _bits(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _state_changes(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield one line for every part of the state that differs."""
    if type(old) is type(new) and isinstance(old, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if not path and is_reserved(key):
                continue
            inner = f"{path}/{key}" if path else key
            if key not in new:
                yield f"{inner}: removed"
            elif key not in old:
                yield f"{inner}: added"
            else:
                yield from _state_changes(old[key], new[key], inner)
    elif type(old) is type(new) and isinstance(old, list) and len(old) == len(new):
        for index, (one, two) in enumerate(zip(old, new, strict=True)):
            yield from _state_changes(one, two, f"{path}/{index}")
    elif repr(old) != repr(new):  # NaN equals NaN, 1 is not 1.0
        yield f"{path}: {_short(old)}, then {_short(new)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."


def plot(difference: Difference, path: str | os.PathLike[str], most: int = 60) -> None:
    """Draw the relative change of each tensor, the largest on top, into a file (needs matplotlib).

    Parameters
    ----------
    difference : Difference
        What `diff` returned.
    path : str or path-like
        The picture; its ending gives the format.
    most : int
        How many tensors to draw, those with the largest changes.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('diff: plot needs matplotlib: pip install "matplotlib>=3.9"') from error

    drawn = [change for change in difference.changed if change.finite and 0 < change.relative < math.inf]
    ranked = sorted(drawn, key=lambda change: change.relative)[-most:]
    labels = [_label(change.name) for change in ranked]
    size = 6 + 0.08 * max(map(len, labels), default=0), 1.5 + 0.25 * len(ranked)  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(ranked)), [change.relative for change in ranked])
    axes.set_yticks(range(len(ranked)), labels)
    axes.margins(y=0.01)
    if ranked and ranked[-1].relative > _WIDE * ranked[0].relative:
        axes.set_xscale("log")
    axes.set_xlabel("norm of the difference / norm before")
    spoilt = sum(not change.finite for change in difference.changed)
    left = len(difference.changed) - len(ranked) - spoilt
    more = f"; {spoilt:,} not finite" * bool(spoilt) + f"; {left:,} more changed" * bool(left)
    axes.set_title(f"{os.path.basename(difference.before)} to {os.path.basename(difference.after)}{more}")
    figure.savefig(path, dpi=150)


def _label(name: str) -> str:
    """Return a name for the axis: the middle of a long one is left out."""
    return name if len(name) <= _LABEL else f"{name[: _LABEL // 2 - 2]}...{name[1 - _LABEL // 2 :]}"
