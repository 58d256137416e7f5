"""Match a file with the objects of a program by name. Check everything before anything is assigned."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from fastvar import kernels
from fastvar.buffers import Array
from fastvar.checkpoint.bookkeeping import PART, is_reserved
from fastvar.checkpoint.contents import MALFORMED, Commit, Contents, Loading, Place, Rename
from fastvar.checkpoint.file_format import LARGE, CheckpointError, Entry
from fastvar.checkpoint.foreign.source import HasSpec
from fastvar.checkpoint.masters import Masters
from fastvar.checkpoint.pytorch import TensorPlace
from fastvar.checkpoint.pytorch_optimizer import StoredOptimizer
from fastvar.checkpoint.report import Like, Restored, mismatch
from fastvar.checkpoint.slot_formats import Differing, differing, reading_of
from fastvar.kernels.atomic import Atomic, Uninterrupted
from fastvar.optimizer.saved import Resumption

NameMap = Mapping[str, str | None] | Rename
Choice = Literal["saved", "program"]
Convert = Callable[[np.dtype[Any], np.dtype[Any]], bool]  # from the dtype in the file to that here


class Source(Protocol):
    """A file of named tensors, of any kind."""

    path: str

    @property
    def entries(self) -> Mapping[str, HasSpec]: ...
    def read(self, name: str) -> Array: ...


class Verified(Source, Protocol):
    """A checkpoint of which everything but the tensors is verified, such as a `File`."""

    step: int
    state: dict[str, Any]

    @property
    def entries(self) -> Mapping[str, Entry]: ...
    def read_small(self, names: Sequence[str]) -> list[bytes]: ...
    def read_into(self, targets: Sequence[tuple[str, Array]]) -> None: ...
    def verify(self, names: Iterable[str]) -> None: ...


def checked_choice(hyperparameters: Choice, owner: str) -> Choice:
    """Return the argument `hyperparameters`; ValueError if it is neither of the two."""
    if hyperparameters not in ("saved", "program"):
        raise ValueError(f"{owner}: hyperparameters must be 'saved' or 'program', got {hyperparameters!r}")
    return hyperparameters


def assign(commits: Sequence[Commit], before: Sequence[tuple[Any, Any]] = ()) -> None:
    """Run the commits in their order, those that may fail first. Signals wait meanwhile.

    If one fails, objects get their previous state back, and `before` restores the rest.
    """
    begun: list[Loading] = []
    with Uninterrupted(), Atomic([*before], []):
        try:
            for commit in commits:
                begun += [commit] if isinstance(commit, Loading) else []
                commit()
        except BaseException as error:
            for loading in reversed(begun):
                try:
                    loading.undo()
                except Exception as other:
                    error.add_note(f"{loading.thing}: could not be given its previous state ({other})")
            raise


class Matched(NamedTuple):
    """A file that matches the objects of a program: what to read of it, and what that will change.

    Attributes
    ----------
    file : Verified
    restored : Restored
        The report.
    resumptions : dict of str to Resumption
        The optimizers, by their keywords.
    hyperparameters : {"saved", "program"}
    taking : dict of str to str
        The names of tensors, here and in the file.
    places : mapping of str to places
        The tensors here.
    converted : list of Differing
        Slots that get another format.
    objects, last : list of callable
        The first and the last commits.
    """

    file: Verified
    restored: Restored
    resumptions: dict[str, Resumption]
    hyperparameters: Choice
    taking: dict[str, str]
    places: Mapping[str, Place]
    converted: list[Differing]
    objects: list[Commit]
    last: list[Commit]

    @property
    def sources(self) -> list[str]:
        """The names in the file of the tensors that `read` reads."""
        return [*self.taking.values(), *(source for one in self.converted for source in one.sources)]

    def read(self) -> tuple[list[Commit], list[tuple[Any, Any]]]:
        """Read and verify the tensors. Return the commits, for an open file, and what they overwrite."""
        resumptions = self.resumptions
        unbuilt = {keyword for keyword, one in resumptions.items() if one.new}
        reading = _read(self.taking, self.places, self.file, unbuilt)
        _warn_of_changed(self.file.path, resumptions, self.hyperparameters)
        reading += [reading_of(one, self.file.read) for one in self.converted]
        taken_over = [one.take_over for one in resumptions.values()]
        commits = [*self.objects, *taken_over, *reading, *self.last]
        return commits, [pair for one in resumptions.values() for pair in one.before()]


def match(
    contents: Contents,
    file: Verified,
    partial: bool,
    name_map: NameMap | None,
    hyperparameters: Choice = "saved",
    cast: bool = False,
) -> Matched:
    """Check that a file matches the objects, before its tensors are read. Only arrays of state are.

    Raises
    ------
    CheckpointError
        If the file is one part of a set.
    ValueError
        One for all that does not match.
    """
    if PART in file.state:
        raise CheckpointError(f"{file.path}: is one part of a set; restore the file that names all parts")
    checked_choice(hyperparameters, "Checkpoint")
    if isinstance(name_map, Mapping):
        there = [name.partition("/")[2] for name in file.entries if not name.startswith("state/")]
        check_map(name_map, owners(contents), there, file.path)
    rename = renamer(name_map)
    restored = Restored(file.path, file.step)
    commits, refused = _prepare_states(contents, file, restored)
    commits += _prepare_of_pytorch(contents, file, rename, restored, hyperparameters == "program")
    resumptions = _resume(contents, file, rename, restored, refused, hyperparameters == "program")
    places = contents.tensors(resumptions)
    if refused:  # without its state, do not take its slots
        places = {name: place for name, place in places.items() if name.partition("/")[0] not in refused}
    sources = places if rename is _same else [source_of(name, rename) for name in places]
    wanted = dict(zip(places, sources, strict=True))
    converted = [
        one
        for one in differing(contents.slots(resumptions), lambda name: source_of(name, rename), file.entries)
        if wanted.keys() >= {*one.here}
    ]
    masters = Masters(contents.variables, lambda name: source_of(name, rename), file.entries)
    places = {**places, **masters.places}
    left = {name for one in converted for name in one.here}
    wanted = {**{name: of for name, of in wanted.items() if name not in left}, **masters.sources}
    taking, wrong = matching(places, wanted, file, restored, lambda there, here: False)
    used = {*sources, *masters.sources.values(), *(source for one in converted for source in one.sources)}
    own = ("state/", *(f"{keyword}/" for keyword in contents.of_pytorch))
    restored.skipped += [n for n in file.entries if n not in used and not n.startswith(own)]
    _refuse(restored, wrong, converted, resumptions, file, partial, hyperparameters, cast)
    objects: list[Commit] = [commit for commit in commits if isinstance(commit, Loading)]
    others = [commit for commit in commits if not isinstance(commit, Loading)]
    settling: list[Commit] = [place.settle for n in taking if isinstance(place := places[n], TensorPlace)]
    restored.taken += [source for one in converted for source in one.sources]
    restored.notes += [one.text for one in converted]
    last = [*settling, masters.settle, *others]
    return Matched(file, restored, resumptions, hyperparameters, taking, places, converted, objects, last)


def _refuse(
    restored: Restored,
    wrong: list[str],
    converted: Sequence[Differing],
    resumptions: Mapping[str, Resumption],
    file: Verified,
    partial: bool,
    hyperparameters: Choice,
    cast: bool,
) -> None:
    """Raise one ValueError for all that does not match."""
    if not partial:
        wrong += restored.refused
    advice = ""
    if converted and not cast:
        wrong += [one.text for one in converted]
        advice = "cast=True converts slots"
    if not partial and (restored.missing or restored.skipped) and hyperparameters == "program":
        slots = [f"{keyword}.{line}" for keyword, one in resumptions.items() for line in one.explain()]
        advice = 'hyperparameters="saved" takes those of the file' if slots else ""
        wrong += slots
    if wrong or (not partial and (restored.missing or restored.skipped)):
        raise ValueError(mismatch(restored, wrong, file.entries, advice))


def _resume(
    contents: Contents, file: Verified, rename: Rename, restored: Restored, refused: set[str], program: bool
) -> dict[str, Resumption]:
    """Prepare the optimizers, and report which hyperparameters differ."""
    resumptions = {}
    for keyword in contents.optimizers:
        if keyword not in file.state:
            restored.missing.append(keyword)
            continue
        try:
            resumptions[keyword] = contents.resume(keyword, file.state[keyword], rename, program)
            restored.taken.append(keyword)
        except ValueError as error:
            restored.refused.append(str(error))
            refused.add(keyword)
    restored.hyperparameters += [f"{k}.{each}" for k, one in resumptions.items() for each in one.differences]
    restored.kept = program
    return resumptions


def _prepare_of_pytorch(
    contents: Contents, file: Verified, rename: Rename, restored: Restored, program: bool
) -> Iterator[Commit]:
    """Yield what gives PyTorch's optimizers their saved state; they may still refuse it."""
    for keyword, optimizer in contents.of_pytorch.items():
        if keyword not in file.state:
            restored.missing.append(keyword)
            continue
        try:
            stored, saved = StoredOptimizer(optimizer, keyword), file.state[keyword]
            yield Loading(stored, stored.prepared(saved, rename, program, file.read))
            restored.hyperparameters += stored.differences(saved, file.read)
            restored.taken += [keyword, *(name for name in file.entries if name.startswith(f"{keyword}/"))]
        except ValueError as error:
            restored.refused.append(f"{keyword}: {error}")
        except MALFORMED as error:
            restored.refused.append(f"{keyword}: the saved state is not that of an optimizer ({error})")


def _warn_of_changed(path: str, resumptions: Mapping[str, Resumption], hyperparameters: Choice) -> None:
    """Warn of hyperparameters that the program has set and that are about to change."""
    changed = [f"{k}.{each}" for k, one in resumptions.items() for each in one.differences if each.given]
    if changed and hyperparameters == "saved":
        warnings.warn(
            f"{path}: hyperparameters of the file replace those that the program has set: "
            f'{"; ".join(changed)} (hyperparameters="program" keeps those of the program)',
            RuntimeWarning,
            stacklevel=_levels_to_caller(),
        )


def _levels_to_caller() -> int:
    """Return the `stacklevel` at which the caller of this function warns the caller of this package."""
    level = 1
    while sys._getframe(level).f_globals["__name__"].partition(".")[0] in ("fastvar", "contextlib"):
        level += 1
    return level


def _read(taking: dict[str, str], places: Mapping[str, Place], file: Verified, unbuilt: set[str]) -> list[Commit]:
    """Verify tensors; return what will assign them.

    Slots of an optimizer that is not built yet hold nothing, and are read into place at once. Other large tensors
    are read a second time. That costs less than keeping all in memory: new memory is slow, and may be scarce.
    """
    new: list[tuple[str, Array]] = []
    large: list[tuple[str, Array]] = []
    few: list[tuple[int, str, Array]] = []
    for name, source in taking.items():
        array, entry = places[name]._array, file.entries[source]
        if 0 < entry.length < LARGE:
            few.append((entry.offset or 0, source, array))
        else:
            (new if name.partition("/")[0] in unbuilt else large).append((source, array))
    few.sort(key=itemgetter(0))
    parts = file.read_small([source for _, source, _ in few])
    small = functools.partial(kernels.copy, [array for _, _, array in few], parts)
    file.verify(source for source, _ in large)
    file.read_into(new)
    return [functools.partial(_overwrite, file, large), small]


def _overwrite(file: Verified, targets: list[tuple[str, Array]]) -> None:
    """Read tensors, just verified, into place."""
    try:
        file.read_into(targets)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; the file changed during the restore, which has overwritten part of the variables",
            errno=error.errno,
            damaged=error.damaged,
        ) from error


def matching(
    places: Mapping[str, Place],
    wanted: Mapping[str, str | None],
    file: Source,
    restored: Restored,
    convertible: Convert,
) -> tuple[dict[str, str], list[str]]:
    """Find the entry for each place; return the names in the file of those that fit, and what does not."""
    taking, wrong = {}, []
    entries = file.entries
    for name, source in wanted.items():
        if source is None:
            continue
        entry, place = entries.get(source), places[name]
        if entry is None:
            same = source in {name, name.removeprefix("variables/")}
            restored.missing.append(name if same else f"{name} (as {source})")
            continue
        there = entry.dtype
        if entry.shape == place.shape and (there == place.dtype or convertible(there, place.dtype)):
            taking[name] = source
        else:
            here = f"{place.dtype}{list(place.shape)}"
            wrong.append(f"{name}: {here} here, {there}{list(entry.shape)} in the file")
    restored.taken += taking
    return taking, wrong


def _prepare_states(contents: Contents, file: Verified, restored: Restored) -> tuple[list[Commit], set[str]]:
    """Prepare generators and users' objects; the latter may still refuse their state."""
    arrays = {name: file.read(name) for name in file.entries if name.startswith("state/")}
    commits: list[Commit] = []
    refused: set[str] = set()
    for keyword in contents.states:
        if keyword not in file.state:
            restored.missing.append(keyword)
            continue
        try:
            commits.append(contents.prepare(keyword, file.state[keyword], arrays))
            restored.taken.append(keyword)
        except ValueError as error:
            restored.refused.append(str(error))
            refused.add(keyword)
    known = {*contents.optimizers, *contents.of_pytorch, *contents.states}
    restored.skipped += [k for k in file.state if k not in known and not is_reserved(k)]
    return commits, refused


def owners(contents: Contents) -> set[str]:
    """Return the names of all variables: those given, and those of the optimizers."""
    of_optimizers = {contents.name_of(v) for o in contents.optimizers.values() for v in o._state.variables}
    return {*contents.variables, *contents.tensors_of_modules, *of_optimizers}


def renamer(name_map: NameMap | None) -> Rename:
    """Return the names in the file of the variables here, as a function."""
    if name_map is None:
        return _same
    if callable(name_map):
        return name_map
    mapping = dict(name_map)

    def by_longest_prefix(name: str) -> str | None:
        for head in _heads(name):
            if head in mapping:
                target = mapping[head]
                return None if target is None else f"{target}/{name[len(head) :].lstrip('/')}".strip("/")
        return name

    return by_longest_prefix


def _same(name: str) -> str:
    return name


def _heads(name: str) -> list[str]:
    """Return the name and every leading part of its path, the longest first; the last is empty."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


def check_map(name_map: Mapping[str, str | None], here: Iterable[str], there: Iterable[str], path: str) -> None:
    """Raise ValueError for a key that is not a name here, or a target that is not one in the file."""
    ours = {head for name in here for head in _heads(name)} | {""}
    theirs = {head for name in there for head in _heads(name)} | {""}
    for key, target in name_map.items():
        for name, known, where in [(key, ours, "no variable here"), (target, theirs, f"nothing in {path}")]:
            if name is not None and name not in known:
                meant = Like(k for k in known if k and k.count("/") == name.count("/")).find(name)
                raise ValueError(f"name_map: {name!r} names {where}" + (f"; is it {meant!r}?" if meant else ""))


def source_of(name: str, rename: Rename) -> str | None:
    """Return the name in the file of a tensor here; slots are renamed with their variables."""
    kind, _, rest = name.partition("/")
    variable, slot = (rest, "") if kind == "variables" else rest.rsplit("/", 1)
    target = rename(variable)
    return None if target is None else "/".join([kind, target, slot]).rstrip("/")
