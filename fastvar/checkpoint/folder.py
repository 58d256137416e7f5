"""A folder of numbered checkpoints, listed by the records in the files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from fastvar.checkpoint.bookkeeping import PIN, read_notes
from fastvar.checkpoint.file_format import MAX_COUNTER, CheckpointError, Record, failing
from fastvar.checkpoint.locks import Lock
from fastvar.checkpoint.part_list import beside, check_parts, is_part, part_list, remove_debris
from fastvar.checkpoint.publishing import absolute, make_directory, sync_directory
from fastvar.checkpoint.reader import peek
from fastvar.checkpoint.retention import Found

_PLAUSIBLE = 1 << 62  # no count of saves is larger


class Scan(NamedTuple):
    """What a folder holds.

    Attributes
    ----------
    found : list of Found
        The checkpoints, oldest first.
    damaged : list of str
        Messages about files that have a checkpoint's name and cannot be read.
    strangers : list of str
        Messages about names that no manager gives (`ckpt-007.h5`, absurd numbers), and about what is not a file.
    """

    found: list[Found]
    damaged: list[str]
    strangers: list[str]


class Folder:
    """The checkpoints `NAME-COUNT.h5` in a directory, which is made if it is missing.

    Attributes
    ----------
    lock : Lock
        The right to write into this folder.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str) -> None:
        self.directory: str = absolute(directory)
        self.name: str = name
        make_directory(self.directory)
        self.lock: Lock = Lock(self._path(f".fastvar-{name}.lock"))
        self._read: dict[str, tuple[Any, Found]] = {}  # by name: identity, and what was read

    def scan(self) -> Scan:
        """Read the records of all checkpoints in the folder. Whole ones count whatever their number is."""
        scan, gone = Scan([], [], []), True
        while gone and not scan.found:  # others who save here may have removed all that was listed: list again
            scan, gone = Scan([], [], []), False
            with failing(self.directory, "cannot be read"):
                names = set(os.listdir(self.directory))
            for name in filter(self._numbered, sorted(names)):
                try:
                    scan.found.append(self._look(name, names))
                except OSError as error:
                    if os.path.lexists(self._path(name)):  # true also for a broken link
                        ours = self._number(name) is not None and _may_be_file(self._path(name))
                        (scan.damaged if ours else scan.strangers).append(message(self._path(name), error))
                    else:
                        gone = True
        self._read = {name: seen for name, seen in self._read.items() if name in names}
        scan.found.sort(key=lambda f: (f.counter, f.step, f.path))
        return scan

    def _look(self, name: str, names: Container[str]) -> Found:
        path, pinned = self._path(name), name + PIN in names
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a file")
        identity = (status.st_ino, status.st_size, status.st_mtime_ns, pinned)
        if self._read.get(name, (None,))[0] != identity:
            record, state = peek(path)
            parts = _whole(path, record, state)
            notes = read_notes(state, status.st_mtime)
            metrics = {key: value for key, value in notes.metrics.items() if type(value) is float}
            kept = pinned or self._number(name) is None  # not a name of ours: never remove it
            found = Found(record.saved.counter, record.step, notes.time, path, metrics, kept, parts)
            self._read[name] = identity, found
        found = self._read[name][1]
        if lacking := [p for p in found.parts if p not in names and not os.path.lexists(beside(path, p))]:
            raise CheckpointError(f"{beside(path, lacking[0])}: missing, and a part of {name}")
        return found

    def next_counter(self) -> int:
        """Return the count for a new checkpoint, above all counts here, also those in names of damaged files."""
        counters = [found.counter for found in self.scan().found]
        numbers = map(self._number, os.listdir(self.directory))
        counter = 1 + max([0, *counters, *filter(None, numbers)])
        if counter > MAX_COUNTER:
            raise CheckpointError(f"{self.directory}: not saved: a checkpoint here has the largest possible count")
        while os.path.lexists(self.path(counter)):
            counter += 1
        return counter

    def clean(self) -> None:
        """Remove part files that a killed save has left; see `remove_debris`."""
        remove_debris(self.directory, self._numbered)

    def remove(self, dispensable: Sequence[Found]) -> list[tuple[Found, OSError]]:
        """Remove checkpoints, durably before their part files. Return those that cannot be removed, and why."""
        failed = []
        for found in dispensable:
            try:
                os.unlink(found.path)
            except OSError as error:
                failed.append((found, error))
        if any(found.parts for found in dispensable):
            with contextlib.suppress(OSError):  # the next save removes the parts
                sync_directory(self.path(0))
                self.clean()
        return failed

    def path(self, counter: int) -> str:
        return self._path(f"{self.name}-{counter}.h5")

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _numbered(self, name: str) -> bool:
        """Whether a file is named like a checkpoint, by a manager or by hand, such as `ckpt-007.h5`."""
        return re.fullmatch(re.escape(self.name) + r"-\d+\.h5", name) is not None

    def _number(self, name: str) -> int | None:
        """Return the number in a name that a manager may have given, else None."""
        match = re.fullmatch(re.escape(self.name) + r"-(0|[1-9][0-9]*)\.h5", name)
        return int(match[1]) if match and int(match[1]) <= _PLAUSIBLE else None

    def others(self) -> list[str]:
        """Return the names of checkpoints here under another checkpoint_name."""
        names = []
        for name in sorted(os.listdir(self.directory)):
            if name.endswith(".h5") and not self._numbered(name) and not is_part(name):
                with contextlib.suppress(OSError):
                    peek(self._path(name))
                    names.append(name)
        return names

    def pin(self, path: str, pinned: bool) -> None:
        """Make (or remove) the file that keeps a checkpoint from being removed, durably."""
        directory, name = os.path.split(path)
        if directory and not os.path.samefile(directory, self.directory):
            raise FileNotFoundError(errno.ENOENT, f"not in the folder {self.directory}", path)
        path = self._path(name)
        if pinned:
            os.stat(path)  # a mistyped name is an error
            os.close(os.open(path + PIN, os.O_WRONLY | os.O_CREAT, 0o666))
            sync_directory(path)
        elif os.path.exists(path + PIN):
            os.unlink(path + PIN)


def _whole(path: str, record: Record, state: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the part files of a checkpoint, which all have the right commit records."""
    try:
        parts = part_list(record, state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if parts is None:
        return ()
    check_parts(path, parts)
    return tuple(file.name for file in parts.files)


def message(path: str, error: OSError) -> str:
    """Return what is wrong with a file, and name it."""
    return str(error) if isinstance(error, CheckpointError) else f"{path}: {error.strerror or error}"


def _may_be_file(path: str) -> bool:
    """Whether there is a file, or may be again: a broken link may lead to a disk that is not mounted."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        return error.errno != errno.ELOOP
