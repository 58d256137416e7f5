"""Match a file with the objects of a program by name. Check everything before anything is assigned."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, Protocol

import numpy as np

from fastvar import kernels
from fastvar.buffers import Array
from fastvar.checkpoint.bookkeeping import is_reserved
from fastvar.checkpoint.contents import MALFORMED, Commit, Contents, Loading, Place, Rename
from fastvar.checkpoint.file_format import EXTENDED, LARGE, CheckpointError
from fastvar.checkpoint.foreign.source import Foreign, HasSpec
from fastvar.checkpoint.masters import Masters
from fastvar.checkpoint.progress import progress
from fastvar.checkpoint.pytorch import TensorPlace
from fastvar.checkpoint.pytorch_optimizer import StoredOptimizer
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.report import Like, Restored, mismatch
from fastvar.checkpoint.slot_formats import differing, reading_of
from fastvar.kernels.atomic import Atomic, Uninterrupted
from fastvar.optimizer.saved import Resumption

NameMap = Mapping[str, str | None] | Rename
Choice = Literal["saved", "program"]
Convert = Callable[[np.dtype[Any], np.dtype[Any]], bool]  # from the dtype in the file to that here

_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


class Source(Protocol):
    """A file of named tensors, of any kind."""

    path: str

    @property
    def entries(self) -> Mapping[str, HasSpec]: ...
    def read(self, name: str) -> Array: ...


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


def prepare_restore(
    contents: Contents,
    file: File,
    partial: bool,
    name_map: NameMap | None,
    hyperparameters: Choice = "saved",
    cast: bool = False,
) -> tuple[Restored, list[Commit], list[tuple[Any, Any]]]:
    """Check everything; return the report, the commits, to run while the file is open, and what they overwrite."""
    checked_choice(hyperparameters, "Checkpoint")
    if isinstance(name_map, Mapping):
        there = [name.partition("/")[2] for name in file.entries if not name.startswith("state/")]
        _check_map(name_map, _owners(contents), there, file.path)
    rename = _renamer(name_map)
    restored = Restored(file.path, file.step)
    commits, refused = _prepare_states(contents, file, restored)
    commits += _prepare_of_pytorch(contents, file, rename, restored, hyperparameters == "program")
    resumptions = _resume(contents, file, rename, restored, refused, hyperparameters == "program")
    places = contents.tensors(resumptions)
    if refused:  # without its state, do not take its slots
        places = {name: place for name, place in places.items() if name.partition("/")[0] not in refused}
    sources = places if rename is _same else [_source(name, rename) for name in places]
    wanted = dict(zip(places, sources, strict=True))
    converted = [
        one
        for one in differing(contents.slots(resumptions), lambda name: _source(name, rename), file.entries)
        if wanted.keys() >= {*one.here}
    ]
    masters = Masters(contents.variables, lambda name: _source(name, rename), file.entries)
    places = {**places, **masters.places}
    left = {name for one in converted for name in one.here}
    wanted = {**{name: of for name, of in wanted.items() if name not in left}, **masters.sources}
    taking, wrong = _match(places, wanted, file, restored, lambda there, here: False)
    used = {*sources, *masters.sources.values(), *(source for one in converted for source in one.sources)}
    own = ("state/", *(f"{keyword}/" for keyword in contents.of_pytorch))
    restored.skipped += [n for n in file.entries if n not in used and not n.startswith(own)]
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
    reading = _read(taking, places, file, {keyword for keyword, one in resumptions.items() if one.new})
    _warn_of_changed(file.path, resumptions, hyperparameters)
    objects = [commit for commit in commits if isinstance(commit, Loading)]
    others = [commit for commit in commits if not isinstance(commit, Loading)]
    settling = [place.settle for name in taking if isinstance(place := places[name], TensorPlace)]
    restored.taken += [source for one in converted for source in one.sources]
    restored.notes += [one.text for one in converted]
    reading += [reading_of(one, file.read) for one in converted]
    taken_over = [one.take_over for one in resumptions.values()]
    commits = [*objects, *taken_over, *reading, *settling, masters.settle, *others]
    return restored, commits, [pair for one in resumptions.values() for pair in one.before()]


def _resume(
    contents: Contents, file: File, rename: Rename, restored: Restored, refused: set[str], program: bool
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
    contents: Contents, file: File, rename: Rename, restored: Restored, program: bool
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


def _read(taking: dict[str, str], places: Mapping[str, Place], file: File, unbuilt: set[str]) -> list[Commit]:
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


def _overwrite(file: File, targets: list[tuple[str, Array]]) -> None:
    """Read tensors, just verified, into place."""
    try:
        file.read_into(targets)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; the file changed during the restore, which has overwritten part of the variables",
            errno=error.errno,
            damaged=error.damaged,
        ) from error


def prepare_import(
    contents: Contents, file: Foreign, partial: bool, name_map: NameMap | None, cast: bool
) -> tuple[Restored, list[Commit]]:
    """Check and read variables from a file of another library. Return the report and the commits."""
    places = contents.tensors()
    slots = [name for name in places if not name.startswith("variables/")]
    if isinstance(name_map, Mapping):
        _check_map(name_map, {*_owners(contents), *slots}, [*file.entries, *file.left], file.path)
    rename = _renamer(name_map)
    explicit = name_map if isinstance(name_map, Mapping) else {}
    wanted = {}
    for name in places:
        target = explicit[name] if name in explicit and name in slots else _source(name, rename)
        if target is not None and target.startswith("variables/"):
            bare = target.removeprefix("variables/")
            target = target if bare not in file.entries and target in file.entries else bare
        if target in file.entries or name not in slots:
            wanted[name] = target
    restored = Restored(file.path, 0, notes=list(file.notes))
    unreadable = {} if partial else {n: file.left[target] for n, target in wanted.items() if target in file.left}
    for name in unreadable:
        del wanted[name]
    taking, wrong = _match(places, wanted, file, restored, _any if cast else _lossless)
    wrong += [f"{name}: {reason}" for name, reason in unreadable.items()]
    used = {*wanted.values()}
    restored.skipped += [name for name in file.entries if name not in used]
    if wrong or (not partial and (restored.missing or restored.skipped)):
        advice = "name_map={NAME: None} leaves a variable as it is; cast=True converts dtypes"
        raise ValueError(mismatch(restored, wrong, file.entries, advice))
    commits: list[Commit] = []
    for place, name in _shown([(places[name], source) for name, source in taking.items()], file.path):
        array = file.read(name)
        if array.dtype != place.dtype:
            restored.notes.append(f"{name}: {array.dtype} in the file, {place.dtype} here")
            array = _converted(array, place.dtype, f"{file.path}: {name}")
        commits.append(functools.partial(place.assign, array))
    return restored, commits


def _shown(taking: list[tuple[Place, str]], path: str) -> Iterator[tuple[Place, str]]:
    """Yield the tensors to be read, with a progress bar if that takes long."""
    with progress(f"importing {os.path.basename(path)}", sum(place.nbytes for place, _ in taking)) as advance:
        for place, name in taking:
            yield place, name
            advance(place.nbytes)


def _match(
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


def _prepare_states(contents: Contents, file: File, restored: Restored) -> tuple[list[Commit], set[str]]:
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


def _owners(contents: Contents) -> set[str]:
    """Return the names of all variables: those given, and those of the optimizers."""
    of_optimizers = {contents.name_of(v) for o in contents.optimizers.values() for v in o._state.variables}
    return {*contents.variables, *contents.tensors_of_modules, *of_optimizers}


def _renamer(name_map: NameMap | None) -> Rename:
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


def _check_map(name_map: Mapping[str, str | None], here: Iterable[str], there: Iterable[str], path: str) -> None:
    """Raise ValueError for a key that is not a name here, or a target that is not one in the file."""
    ours = {head for name in here for head in _heads(name)} | {""}
    theirs = {head for name in there for head in _heads(name)} | {""}
    for key, target in name_map.items():
        for name, known, where in [(key, ours, "no variable here"), (target, theirs, f"nothing in {path}")]:
            if name is not None and name not in known:
                meant = Like(k for k in known if k and k.count("/") == name.count("/")).find(name)
                raise ValueError(f"name_map: {name!r} names {where}" + (f"; is it {meant!r}?" if meant else ""))


def _source(name: str, rename: Rename) -> str | None:
    """Return the name in the file of a tensor here; slots are renamed with their variables."""
    kind, _, rest = name.partition("/")
    variable, slot = (rest, "") if kind == "variables" else rest.rsplit("/", 1)
    target = rename(variable)
    return None if target is None else "/".join([kind, target, slot]).rstrip("/")


def _rank(dtype: np.dtype[Any]) -> int:
    return 2 if dtype.name in EXTENDED else _KINDS[dtype.kind]


def _any(there: np.dtype[Any], here: np.dtype[Any]) -> bool:
    """Whether `cast` may convert: integers may become floats, floats never integers."""
    return _rank(there) <= _rank(here)


def _lossless(there: np.dtype[Any], here: np.dtype[Any]) -> bool:
    """Whether `here` holds every number of `there`. (NumPy's "safe" lets int64 become float64.)"""
    return _rank(there) == _rank(here) and np.can_cast(there, here)


def _converted(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    """Return the array as another dtype; ValueError if numbers are too large for it."""
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        if _rank(dtype) == 1:
            lost = bool((result != array).any())
        else:
            lost = not np.array_equal(_finite(result), _finite(array))
    if lost:
        raise ValueError(f"{name}: some of its numbers are too large for {dtype}; nothing was changed")
    return result


def _finite(array: Array) -> Any:
    return np.isfinite(array.astype(np.float32) if array.dtype.name in EXTENDED else array)
