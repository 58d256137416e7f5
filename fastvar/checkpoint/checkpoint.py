"""Save and restore of a set of objects: all of it, verified, or none of it."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastvar import optimizer_state
from fastvar.buffers import Array
from fastvar.checkpoint.contents import Commit, Contents, Rename
from fastvar.checkpoint.names import make_directory
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.writer import write

NameMap = Mapping[str, str | None] | Rename


@dataclass
class Restored:
    """What a restore took from a file.

    Attributes
    ----------
    path : str
    step : int
        The step at which the file was saved.
    taken, missing, skipped : list of str
        Names that were restored, that the file lacks, and that only the file has.
    refused : list of str
        With `partial`, why an optimizer or another object did not take its saved state.
    """

    path: str
    step: int
    taken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.path}, step {self.step}: {len(self.taken)} restored"]
        parts = ("not in the file", self.missing), ("only in the file", self.skipped), ("refused", self.refused)
        for what, names in parts:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines += [f"  {what}: {', '.join(names[:5])}{more}"] * bool(names)
        return "\n".join(lines)


class Checkpoint:
    """A set of objects that are saved and restored together.

    Parameters
    ----------
    root : Module, optional
        Its variables are named by their paths in it, such as `encoder/0/kernel`.
    **objects
        Variables, modules, or lists and dicts of them (named by keyword and path, unless a variable has a
        name of its own); optimizers; random generators of NumPy and Python; dicts of JSON values and arrays,
        restored in place; objects with `state_dict()` and `load_state_dict(state)`.

    Raises
    ------
    TypeError, ValueError
        For other objects, and if two variables have one name.

    Examples
    --------
    >>> import fastvar as fv, tempfile, os
    >>> w = fv.Variable([1.0, 2.0], name="w")
    >>> progress = {"epoch": 3}
    >>> checkpoint = fv.Checkpoint(variables=[w], progress=progress)
    >>> path = checkpoint.save(os.path.join(tempfile.mkdtemp(), "model.h5"))
    >>> w[...] = 0
    >>> progress["epoch"] = 0
    >>> checkpoint.restore(path).taken
    ['progress', 'variables/w']
    >>> w.value, progress
    (array([1., 2.]), {'epoch': 3})
    """

    def __init__(self, root: Any = None, /, **objects: Any) -> None:
        self._root, self._objects = root, objects
        self._contents()  # the errors of the objects belong here

    def _contents(self) -> Contents:
        return Contents(self._root, self._objects)

    def save(self, path: str | os.PathLike[str], *, step: int | None = None, overwrite: bool = False) -> str:
        """Write everything to one HDF5 file, and return its path; it is then durable.

        Parameters
        ----------
        path : str or path-like
            The file; missing folders are made.
        step : int, optional
            Kept in the file; by default the `iterations` of the only optimizer, else 0.
        overwrite : bool
            Whether a file of that name may be replaced (which happens in one instant).

        Raises
        ------
        FileExistsError
            If the file exists, and `overwrite` is false.
        CheckpointError
            If it cannot be written; older files are untouched.
        """
        tensors, arrays, state, own_step = self.collect()
        path = os.fspath(path)
        make_directory(os.path.dirname(path))
        write(path, tensors | arrays, state, step=own_step if step is None else step, replace=overwrite)
        return path

    def collect(self) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any], int]:
        """Return what a save consists of: tensors (in place), arrays of the state (copied), state, step."""
        contents = self._contents()
        state, arrays = contents.state()
        tensors = {name: v._array for name, v in contents.tensors().items()}
        return tensors, arrays, state, _step_of(contents)

    def step(self) -> int:
        """Return the `iterations` of the only optimizer, else 0."""
        return _step_of(self._contents())

    @property
    def has_step(self) -> bool:
        """Whether there is just one optimizer, whose iterations count the steps."""
        return len(self._contents().optimizers) == 1

    def restore(
        self, path: str | os.PathLike[str], *, partial: bool = False, name_map: NameMap | None = None
    ) -> Restored:
        """Read a file, verify all of it, and only then give every object its saved state.

        An optimizer that is not built yet is built as it was. Hyperparameters come back as they were saved,
        also those given otherwise to the constructor (a schedule that is a plain function stays the program's):
        set after the restore what is to differ. The streams of random generators come back, the count of
        children that they have spawned does not.

        Parameters
        ----------
        path : str or path-like
            The file.
        partial : bool
            Take what fits by name, and leave the rest as it is. By default both sides must match.
        name_map : mapping or callable, optional
            From the name of a variable here, or the leading part of its path, to that in the file; None
            leaves the variable as it is.

        Returns
        -------
        Restored
            What was taken, what the file lacks, and what only the file has.

        Raises
        ------
        CheckpointError
            If the file is damaged or not a checkpoint.
        ValueError
            If names, shapes or dtypes do not match: one error that lists them all.
        """
        with File(path) as file:
            contents = self._contents()
            rename = _mapper(name_map)
            built = _build_optimizers(contents, file.state, rename)
            try:
                restored, commits = _prepared(contents, file, partial, rename)
            except BaseException:
                for optimizer in built:
                    optimizer_state.unbuild(optimizer)
                raise
        for commit in commits:
            commit()
        return restored

    def __repr__(self) -> str:
        contents = self._contents()
        parts = [f"{len(contents.variables)} variables", *contents.optimizers, *contents.states]
        return f"<fastvar.Checkpoint of {', '.join(parts)}>"


def _step_of(contents: Contents) -> int:
    optimizers = list(contents.optimizers.values())
    return optimizers[0].iterations if len(optimizers) == 1 else 0


def _build_optimizers(contents: Contents, state: dict[str, Any], rename: Rename) -> list[Any]:
    """Build those that are not built yet on the variables they were saved with, if all are here."""
    built = []
    named = {str(rename(name)): v for name, v in contents.variables.items()}
    for keyword, optimizer in contents.optimizers.items():
        saved = state.get(keyword, {})
        names = [n for group in saved.get("groups", ()) for n in group["variables"]]
        if not optimizer._variables and names and all(n in named for n in names):
            optimizer_state.build(optimizer, saved, named)
            built.append(optimizer)
    return built


def _mapper(name_map: NameMap | None) -> Rename:
    if name_map is None:
        return lambda name: name
    if callable(name_map):
        return name_map
    mapping = dict(name_map)

    def by_longest_prefix(name: str) -> str | None:
        head, tail = name, ""
        while head:
            if head in mapping:
                target = mapping[head]
                return None if target is None else target + tail
            head, _, last = head.rpartition("/")
            tail = f"/{last}{tail}"
        return name

    return by_longest_prefix


def _source(name: str, rename: Rename) -> str | None:
    """Return the name in the file of a tensor here; slots follow their variables."""
    kind, _, rest = name.partition("/")
    variable, slot = (rest, "") if kind == "variables" else rest.rsplit("/", 1)
    target = rename(variable)
    return None if target is None else "/".join([kind, target, slot]).rstrip("/")


def _prepared(contents: Contents, file: File, partial: bool, rename: Rename) -> tuple[Restored, list[Commit]]:
    """Check and read everything; return the report and the assignments to be made."""
    restored = Restored(file.path, file.step)
    wrong: list[str] = []
    arrays = {name: file.read(name) for name in file.entries if name.startswith("state/")}
    commits, refused = _prepare_states(contents, file, arrays, rename, restored)
    used: set[str] = set()
    for name, place in contents.tensors().items():
        source = _source(name, rename)
        if source is None or name.partition("/")[0] in refused:  # slots without their optimizer mean nothing
            continue
        entry = file.entries.get(source)
        if entry is None:
            restored.missing.append(name if source == name else f"{name} (as {source})")
            continue
        used.add(source)
        if entry.shape != place.shape or entry.dtype != place.dtype:
            here, there = f"{place.dtype}{list(place.shape)}", f"{entry.dtype}{list(entry.shape)}"
            wrong.append(f"{name}: {here} here, {there} in the file")
            continue
        commits.append(functools.partial(place.assign, file.read(source)))
        restored.taken.append(name)
    restored.skipped += [n for n in file.entries if n not in used and not n.startswith("state/")]
    if not partial:
        wrong += restored.refused
    if wrong or (not partial and (restored.missing or restored.skipped)):
        raise ValueError(_mismatch(restored, wrong, list(file.entries)))
    return restored, commits


def _prepare_states(
    contents: Contents, file: File, arrays: dict[str, Array], rename: Rename, restored: Restored
) -> tuple[list[Commit], set[str]]:
    """Prepare generators, users' objects and optimizers, in the order in which they may still fail."""
    commits: list[Commit] = []
    refused: set[str] = set()
    for keyword in [*contents.states, *contents.optimizers]:
        if keyword not in file.state:
            restored.missing.append(keyword)
            continue
        try:
            commits.append(contents.prepare(keyword, file.state[keyword], arrays, rename))
            restored.taken.append(keyword)
        except ValueError as error:
            restored.refused.append(str(error))
            refused.add(keyword)
    known = {*contents.optimizers, *contents.states}
    restored.skipped += [keyword for keyword in file.state if keyword not in known and not keyword.startswith("$")]
    return commits, refused


def _mismatch(restored: Restored, wrong: list[str], names: list[str]) -> str:
    lines = [f"{restored.path}: does not match what it is restored into; nothing was changed"]
    lines += [f"  mismatched: {line}" for line in wrong]
    for name in restored.missing:
        close = difflib.get_close_matches(name, names, n=1)
        lines.append(f"  missing in the file: {name}" + (f" (it has {close[0]})" if close else ""))
    lines += [f"  unexpected in the file: {name}" for name in restored.skipped]
    if wrong:
        advice = "name_map={NAME: None} leaves a variable as it is"
    else:
        advice = "partial=True takes what is there; name_map= renames"
    return "\n".join([*lines, f"  ({advice})"])
