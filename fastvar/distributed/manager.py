"""Many checkpoints of many ranks during training."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, SupportsFloat

from fastvar import checkpoint
from fastvar.checkpoint.file_format import CheckpointError, Saved, checked_step, failing
from fastvar.checkpoint.folder import message
from fastvar.checkpoint.manager import retain
from fastvar.checkpoint.part_list import beside
from fastvar.checkpoint.parts import PartRecord
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.restore import Choice, checked_choice
from fastvar.distributed.checkpoint import Checkpoint
from fastvar.distributed.meeting import Ended


class CheckpointManager(checkpoint.CheckpointManager):
    """Checkpoints of all ranks in one folder, kept and removed as by `fastvar.CheckpointManager`.

    All ranks make the same calls, and the folder is the same for all. Rank 0 holds its lock, and removes what need
    not be kept. A save is a set of files that any number of ranks restores.

    Parameters
    ----------
    checkpoint : Checkpoint
        That of `fastvar.distributed`.
    directory : str or path-like
        The folder.
    **options
        As for `fastvar.CheckpointManager`.

    Examples
    --------
    >>> import fastvar as fv, fastvar.distributed as fd, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> def program(world):
    ...     w = fv.Variable([4.0], name="w")
    ...     optimizer = fd.Distributed(fv.optimizers.SGD(0.25), world, micro_batches=2)
    ...     optimizer.build([w])
    ...     with fd.CheckpointManager(fd.Checkpoint([w], optimizer=optimizer), folder) as manager:
    ...         manager.restore_or_initialize()
    ...         for i in optimizer.micro_batches():
    ...             optimizer.add([w.numpy()])
    ...         optimizer.step()
    ...         manager.save()
    ...     return optimizer.iterations, float(w[0])
    >>> fd.simulate(2, program)
    [(1, 3.0), (1, 3.0)]
    >>> fd.simulate(1, program)
    [(2, 2.25)]
    """

    checkpoint: Checkpoint

    def __init__(self, checkpoint: Checkpoint, directory: str | os.PathLike[str], **options: Any) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(
                "CheckpointManager: checkpoint must be a Checkpoint of fastvar.distributed, "
                f"got {type(checkpoint).__name__}"
            )
        super().__init__(checkpoint, directory, **options)
        self._pending: _Pending | None = None  # a save that does not exist yet
        self._error: Exception | None = None  # that of a save that a step has finished

    def save(  # type: ignore[override]
        self,
        step: int | None = None,
        check_interval: bool = True,
        *,
        blocking: bool = True,
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> str | None:
        """Save on all ranks, then remove what need not be kept. Return the path, or None if no save is due yet.

        Parameters
        ----------
        step, check_interval, metrics
            As for `fastvar.CheckpointManager.save`. Metrics are those of rank 0.
        blocking : bool
            False returns as soon as everything is copied; a thread of each rank writes its part. The set exists
            after the first step before which all parts are written, and at the latest when `wait`, `close` or the
            next `save` has returned. An error is raised by these three, on all ranks.

        Raises
        ------
        CheckpointError
            On all ranks, if one cannot write; older checkpoints are untouched.
        """
        step = self._step() if step is None else checked_step(step)
        interval = self.checkpoint_interval if check_interval else None
        if interval and self._last_step is not None and step - self._last_step < interval:
            return None
        checked, folder = self._checked(metrics), self._folder
        self.wait()

        def begin() -> tuple[str, int, str]:
            with failing(folder.directory):
                folder.lock.acquire()
                folder.clean()
                counter = folder.next_counter()
            return folder.path(counter), counter, self._run

        path, counter, run = self.checkpoint._on_first(f"save step {step}", begin)
        with self.checkpoint._hold():
            write, commit = self.checkpoint._prepared(
                path,
                folder.lock,
                step,
                saved=Saved(run, counter),
                metrics=checked,
                copy=dict if blocking else self._staging.copy,
            )
            self._pending = _Pending(self, path, write, commit)
            if blocking:
                self.wait()
            else:
                self._background.start(self._pending.write)
                self.checkpoint._shared.deferred.append(self._pending)
        self._last_step = step
        return str(path)

    def wait(self) -> None:
        """Wait until the last save exists; all ranks must call it.

        Raises
        ------
        CheckpointError
            On all ranks, if one could not write its part. The next save works as usual.
        """
        pending, error = self._pending, self._error
        self._forget()
        if error is not None:
            raise error
        try:
            if pending is None:
                super().wait()
            else:
                self._finish(pending)
        except BaseException:
            self._last_step = None  # the next save is due at once
            raise

    def _finish(self, pending: _Pending) -> None:
        """Make a set exist as soon as its parts are written, on all ranks, and remove old ones."""
        together = self.checkpoint

        def written() -> PartRecord:
            super(CheckpointManager, self).wait()
            return pending.write()

        pending.commit(together._together("save a part", written))
        remove = functools.partial(retain, pending.path, self._folder, self._retention, of_parts=False)
        together._on_first("remove", remove)

    def _forget(self) -> None:
        """Leave the last save to its thread."""
        deferred = self.checkpoint._shared.deferred
        deferred[:] = [one for one in deferred if one is not self._pending]
        self._pending = self._error = None

    def restore_or_initialize(self, *, hyperparameters: Choice | None = None, cast: bool = False) -> str | None:
        """Restore the newest checkpoint that is good on all ranks; see `fastvar.CheckpointManager`.

        Raises
        ------
        CheckpointError
            On all ranks, if there are checkpoints and all are damaged, or another program saves here.
        """
        choice = checked_choice(hyperparameters or self.hyperparameters, "CheckpointManager")
        self.wait()

        def begin() -> tuple[list[str], list[str]]:
            self._folder.lock.acquire()
            found, damaged, strangers = self._folder.scan()
            _warn(f"{stranger}; it is left alone" for stranger in strangers)
            return [one.path for one in reversed(found)], damaged

        paths, damaged = self.checkpoint._on_first("restore_or_initialize", begin)
        for path in paths:
            try:
                restored = self.checkpoint.restore(path, hyperparameters=choice, cast=cast)
            except CheckpointError as error:
                damaged.append(message(path, error))
                continue
            self._last_step = restored.step
            _warn(f"{problem}; restored {path} instead" for problem in damaged if self.checkpoint._world.rank == 0)
            return str(path)
        self._refuse_if_all_are(damaged)
        if self.init_fn is not None:
            self.init_fn()
        return None

    def __enter__(self) -> Self:
        self.checkpoint._on_first("open the folder", self._folder.lock.acquire)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # the other ranks do not come to finish a save
            self._forget()
        super().__exit__(kind, error, trace)


class _Pending:
    """A save whose set does not exist yet.

    Attributes
    ----------
    path : str
        The commit file.
    commit : callable
        What makes the set exist, given what is known of this rank's part.
    """

    def __init__(
        self,
        manager: CheckpointManager,
        path: str,
        write: Callable[[], PartRecord],
        commit: Callable[[PartRecord], None],
    ) -> None:
        self.path, self.commit = path, commit
        self._manager, self._write = manager, write
        self._record: PartRecord | None = None

    def write(self) -> PartRecord:
        """Write this rank's part, once, and read it back."""
        if self._record is None:
            record = self._write()
            part = beside(self.path, record["file"])
            with failing(part, "saved, but cannot be read again"), File(part) as file:
                file.verify()
            self._record = record
        return self._record

    def ready(self) -> bool:
        """Whether this rank's part is written, or failed to be."""
        return not self._manager._background.busy

    def act(self) -> None:
        """Make the set exist; `wait` raises the error."""
        manager = self._manager
        try:
            manager.wait()
        except Ended:
            raise
        except Exception as error:
            manager._error = error


def _warn(messages: Iterable[str]) -> None:
    for text in messages:
        warnings.warn(text, RuntimeWarning, stacklevel=4)
