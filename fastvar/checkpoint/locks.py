"""Locks on files: who may write in a directory, and which temporary files have a living writer.

The locks are `flock`s, which the system drops when their process ends, however it ends. Where the file system (or
Windows) has none, nothing is locked, and a manager warns.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
import warnings
import weakref
from collections.abc import Iterator

if sys.platform != "win32":
    import fcntl

from fastvar.checkpoint.file_format import CheckpointError, failing
from fastvar.kernels.atomic import Uninterrupted

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # the file system cannot do it
_NO_LOCKS = {*UNSUPPORTED, errno.ENOLCK}  # ENOLCK: NFS without its lock service
# Do not follow links or open pipes that others put here.
_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_TRIES = 100  # of one millisecond each; others hold a directory for much less
_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def close_read(descriptor: int) -> None:
    """Close a descriptor that was only read from, and ignore errors, which cannot mean lost data."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file until its last descriptor is closed.

    Return False if another process has the lock, and None if there are no locks here.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


@contextlib.contextmanager
def in_turn(directory: str) -> Iterator[None]:
    """Keep other writers of fastvar out of a directory for a moment, where there are locks."""
    if sys.platform == "win32":  # directories cannot be opened
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        for _ in range(_TRIES):
            if try_lock(descriptor) is not False:
                break
            time.sleep(0.001)
        yield
    finally:
        os.close(descriptor)


class Lock:
    """The right to write checkpoints of one name into a directory, as a lock on a file that names its holder.

    Parameters
    ----------
    path : str
        The lock file. It stays when the lock is released: removing it could let two writers in at once.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def acquire(self, purpose: str = "not saved") -> None:
        """Take the lock, if it is not held already.

        Raises
        ------
        CheckpointError
            If another process, or another manager of this one, has the lock. The message names the holder, and
            `purpose` as what cannot be done; errno is EWOULDBLOCK.
        """
        if self.held:
            return
        with Uninterrupted(), failing(self._path, purpose):  # losing the descriptor would keep the lock for ever
            descriptor = os.open(self._path, _OPEN_FLAGS, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                self._settle(descriptor, purpose)
            except BaseException:
                close_read(descriptor)
                raise
            self._descriptor = descriptor
            _held.add(self)

    def _settle(self, descriptor: int, purpose: str) -> None:
        """Lock the open file, and write into it who has the lock."""
        locked = try_lock(descriptor)
        if locked:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _myself().encode(), 0)
        if locked is None:
            warnings.warn(
                f"{self._path}: this file system has no locks; a second program could save here at the same time",
                RuntimeWarning,
                stacklevel=4,
            )
        elif not locked:
            holder = _holder(descriptor)
            own = " (this process: close() the other manager)" if holder.startswith(f"pid {os.getpid()} ") else ""
            folder = os.path.dirname(self._path)
            raise CheckpointError(f"{folder}: {purpose}: {holder} is saving here{own}", errno=errno.EWOULDBLOCK)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self.held:
            with Uninterrupted():
                self._close()

    def _close(self) -> None:
        """Close the file without unlocking it, since a forked child shares the lock with its parent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_read(descriptor)

    def __del__(self) -> None:
        self._close()


def _holder(descriptor: int) -> str:
    """Return what the holder of the lock has written into the file, as it does at once."""
    for _ in range(_TRIES):
        text = os.pread(descriptor, 1000, 0)
        if text:
            return text.decode(errors="replace")
        time.sleep(0.001)
    return "another process"


def _myself() -> str:
    program = os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python"
    return f"pid {os.getpid()} on {socket.gethostname()} ({program}, since {time.strftime('%Y-%m-%d %H:%M:%S')})"


def _after_fork() -> None:
    for lock in list(_held):  # a child that outlives its parent would keep the directory locked
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
