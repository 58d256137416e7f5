"""A folder of numbered checkpoints: what is in it, by the records in the files."""

from __future__ import annotations

import errno
import os
import re
from typing import Any

from fastvar.checkpoint.locks import Lock
from fastvar.checkpoint.names import absolute, make_directory, sync_directory
from fastvar.checkpoint.reader import peek
from fastvar.checkpoint.record import CheckpointError, failing
from fastvar.checkpoint.retention import Found

OWN = "$manager"  # in the state of a file: when it was saved, and the metrics
_PIN = ".pin"  # follows the name of a checkpoint in that of the empty file that pins it


class Folder:
    """The checkpoints `NAME-COUNT.h5` in a directory, which is made if it is missing.

    Attributes
    ----------
    lock : Lock
        The right to write here.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str) -> None:
        self.directory, self.name = absolute(directory), name
        make_directory(self.directory)
        self.lock = Lock(self._path(f".fastvar-{name}.lock"))
        self._read: dict[str, tuple[Any, Found]] = {}  # what was read of files that have not changed since

    def scan(self) -> tuple[list[Found], list[str]]:
        """Return the checkpoints, oldest first, and messages about files that look like damaged ones."""
        found: list[Found] = []
        damaged: list[str] = []
        gone = True
        while gone and not found:  # where others save, all may be removed while we look, and there are newer ones
            gone, damaged = False, []
            with failing(self.directory, "cannot be read"):
                names = set(os.listdir(self.directory))
            for name in filter(self._number_after, names):
                try:
                    found.append(self._look(name, name + _PIN in names))
                except OSError as error:
                    if os.path.lexists(self._path(name)):  # a link to nothing, too
                        damaged.append(str(error))
                    else:
                        gone = True
        self._read = {name: seen for name, seen in self._read.items() if name in names}
        return sorted(found, key=lambda f: (f.counter, f.step, f.path)), damaged

    def _look(self, name: str, pinned: bool) -> Found:
        path = self._path(name)
        status = os.stat(path)
        identity = (status.st_ino, status.st_size, status.st_mtime_ns, pinned)
        if self._read.get(name, (None,))[0] != identity:
            record, state = peek(path)
            time, metrics = _own(state, status.st_mtime)
            found = Found(record.saved.counter, record.step, time, path, metrics, pinned)
            self._read[name] = identity, found
        return self._read[name][1]

    def next_counter(self) -> int:
        """Return the count for a new checkpoint, beyond those here and the names of damaged ones."""
        counters = [found.counter + 1 for found in self.scan()[0]]
        return max([1, *counters, *map(self._number_after, os.listdir(self.directory))])

    def path(self, counter: int) -> str:
        return self._path(f"{self.name}-{counter}.h5")

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _number_after(self, name: str) -> int:
        """Return the number that follows the one in the name of a file of ours; 0 for any other file."""
        match = re.fullmatch(re.escape(self.name) + r"-(\d+)\.h5", name)
        return int(match[1]) + 1 if match else 0

    def strangers(self) -> list[str]:
        """Return the names of checkpoints here that are called otherwise."""
        names = []
        for name in sorted(os.listdir(self.directory)):
            if name.endswith(".h5") and not self._number_after(name):
                try:
                    peek(self._path(name))
                except (CheckpointError, FileNotFoundError):
                    continue
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
            os.close(os.open(path + _PIN, os.O_WRONLY | os.O_CREAT, 0o666))
            sync_directory(path)
        elif os.path.exists(path + _PIN):
            os.unlink(path + _PIN)


def _own(state: dict[str, Any], time: float) -> tuple[float, dict[str, float]]:
    """Return what a manager has noted in the state, or for other files their own time."""
    own = state.get(OWN)
    if not isinstance(own, dict):
        return time, {}
    noted, metrics = own.get("time"), own.get("metrics")
    numbers = {k: v for k, v in metrics.items() if type(v) is float} if isinstance(metrics, dict) else {}
    return (noted if type(noted) is float else time), numbers
