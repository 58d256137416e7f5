"""Locks on files: who may write in a directory, and which temporary files have a living writer.

They are `flock`s: the system drops them when their process ends, however it ends. Where a file system (or
Windows) has none, nothing is locked, and a manager says so.
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

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # by a file system
_NO_LOCKS = {*UNSUPPORTED, errno.ENOLCK}  # the last: of NFS without its lock service
# Links and pipes of others are left alone: what is written would not stay here.
_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_TRIES = 100  # others hold a directory for much less than so many milliseconds
_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def close_read(descriptor: int) -> None:
    """Close what was only read: nothing can be lost, whatever the system says."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file until its last descriptor is closed; False if another has it, None without locks."""
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
    """Keep other writers of fastvar out of a directory for a moment, as far as there are locks."""
    if sys.platform == "win32":  # there, directories cannot be opened
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
    """The right to write checkpoints of one name into a directory, kept by a file that says who has it.

    Parameters
    ----------
    path : str
        Of the lock file. It stays, as removing it could let two in at once; without a process it means nothing.
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
            If another process, or another manager of this one, has it: it is named, and errno is EWOULDBLOCK.
            `purpose` says what cannot be done now.
        """
        if self.held:
            return
        with Uninterrupted(), failing(self._path, purpose):  # a descriptor that is lost would keep the lock
            descriptor = os.open(self._path, _OPEN_FLAGS, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is no file")
                self._settle(descriptor, purpose)
            except BaseException:
                close_read(descriptor)
                raise
            self._descriptor = descriptor
            _held.add(self)

    def _settle(self, descriptor: int, purpose: str) -> None:
        """Lock the open file, and write down who did."""
        locked = try_lock(descriptor)
        if locked:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _myself().encode(), 0)
        if locked is None:
            warnings.warn(
                f"{self._path}: this file system has no locks; nothing keeps a second program from saving here",
                RuntimeWarning,
                stacklevel=4,
            )
        elif not locked:
            holder = _holder(descriptor)
            own = " (this process: close() the other manager)" if holder.startswith(f"pid {os.getpid()} ") else ""
            folder = os.path.dirname(self._path)
            raise CheckpointError(f"{folder}: {purpose}: {holder} is saving here{own}", errno=errno.EWOULDBLOCK)

    def release(self) -> None:
        """Give the lock back; a second time does nothing."""
        if self.held:
            with Uninterrupted():
                self._close()

    def _close(self) -> None:
        """Close the file without unlocking it: a forked child's copy must not end the parent's lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_read(descriptor)

    def __del__(self) -> None:
        self._close()


def _holder(descriptor: int) -> str:
    """Return what the holder has written down, which it does at once."""
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
    for lock in list(_held):  # else a child that outlives its parent would keep the directory locked
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
