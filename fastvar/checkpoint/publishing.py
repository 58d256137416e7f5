"""Temporary files, their removal after a kill, and durable publishing under the final name."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from fastvar.checkpoint.file_format import CheckpointError, failing
from fastvar.checkpoint.locks import UNSUPPORTED, in_turn, try_lock
from fastvar.kernels.atomic import Uninterrupted

_PREFIX = ".fastvar-"  # tells temporary files that a killed writer left from all other files
_SUFFIX = ".tmp"
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EMLINK, *UNSUPPORTED}


@contextlib.contextmanager
def temporary(directory: str) -> Iterator[tuple[str, int]]:
    """Make a new file and give its path and a descriptor, to be closed inside; an error removes the file.

    The file is locked as long as this process lives.
    """
    path, keeper, tidying = "", -1, Uninterrupted()
    try:
        with Uninterrupted():
            path, keeper = _make_locked(directory)
        yield path, os.dup(keeper)
    except BaseException:
        with tidying:
            discard(path)
        raise
    finally:
        with tidying, contextlib.suppress(OSError):  # data are lost only if closing the other one fails
            os.close(keeper)


def _make_locked(directory: str) -> tuple[str, int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = os.path.join(directory, _PREFIX + secrets.token_hex(8) + _SUFFIX)
        try:
            keeper = os.open(path, flags, 0o666)  # less the umask
        except OSError as error:  # users know the folder, not the file
            raise OSError(error.errno, error.strerror, directory) from error
        try:
            # Another process that cleans up just before the file is locked takes it for debris and removes it.
            if try_lock(keeper) is not False and os.fstat(keeper).st_nlink:
                return path, keeper
        except BaseException:
            discard(path)
            os.close(keeper)
            raise
        os.close(keeper)


def clean(directory: str) -> None:
    """Remove what killed writers have left: temporary files that nobody has locked."""
    for name in os.listdir(directory):
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            with contextlib.suppress(OSError):  # another user's, or just removed
                _remove_dead(os.path.join(directory, name))


def _remove_dead(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and try_lock(descriptor):
            os.unlink(path)
    finally:
        os.close(descriptor)


def taken(path: str) -> FileExistsError:
    """Return the error for a file that exists and that the user does not want to replace."""
    return FileExistsError(errno.EEXIST, "file exists; overwrite=True replaces it", path)


def check_replaceable(path: str) -> None:
    """Raise CheckpointError if `path` is not a regular file, such as `/dev/null`, which must not be replaced."""
    with failing(path), contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            wanted = "not saved: it is not a regular file, and is not replaced"
            raise CheckpointError(f"{path}: {wanted}", errno=errno.EINVAL)


def publish(source: str, path: str, replace: bool) -> None:
    """Give a file its final name, durably. If that fails, a new name is removed again. Signals wait meanwhile."""
    with Uninterrupted():
        if replace:
            os.replace(source, path)
            sync_directory(path)
            return
        try:
            if _link(source, path):
                os.unlink(source)
            sync_directory(path)
        except FileExistsError:
            raise
        except BaseException:
            discard(path)
            raise


def _link(source: str, path: str) -> bool:
    """Give a file a second name, unless it is taken. Where the file system has no links, move it, return False."""
    try:
        os.link(source, path)
        return True
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    with in_turn(os.path.dirname(path) or "."):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        os.replace(source, path)
    return False


def discard(path: str) -> None:
    """Remove a file of ours and ignore errors, as another one is being raised."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return the absolute path, which names the same place after `os.chdir`.

    As in Python's own functions, `~` is an ordinary character. `..` stays, since the part before it may be a link.
    """
    text = os.fsdecode(path)
    whole = Path(text).absolute()
    folder = os.path.basename(text) in {"", "."}  # the ending says that it must be a folder
    return os.path.join(whole, "") if folder else str(whole)


def make_directory(path: str) -> None:
    """Make a directory and its missing parents, durably."""
    if not path or os.path.isdir(path):
        return
    make_directory(os.path.dirname(path))
    with contextlib.suppress(FileExistsError):  # another process was faster; a file of that name fails later
        os.mkdir(path)
    sync_directory(path)


def sync_directory(path: str) -> None:
    """Make the name of `path` in its directory durable."""
    if os.name == "nt":  # Windows cannot open a directory, and its file system journals names
        return
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
