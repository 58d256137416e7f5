"""A folder of checkpoints: which is the latest, when to save, which to keep."""

from __future__ import annotations

import functools
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, SupportsFloat, overload

from fastvar.checkpoint.background import Background, Staging
from fastvar.checkpoint.bookkeeping import add_notes
from fastvar.checkpoint.checkpoint import Checkpoint
from fastvar.checkpoint.file_format import CheckpointError, Saved, checked_step, failing, uncollected
from fastvar.checkpoint.folder import Folder, message
from fastvar.checkpoint.history import History
from fastvar.checkpoint.restore import Choice, checked_choice
from fastvar.checkpoint.retention import Retention
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.checkpoint.stopping import Listener
from fastvar.checkpoint.writer import prepare
from fastvar.tables import Shown, Table, count


class CheckpointManager(Shown):
    """Saves a `Checkpoint` into a folder again and again, removes old files, and restores the latest.

    One manager at a time may save under one name into a folder: from `with`, its restore or its first save until
    `close`, or until it or its process ends. Others may read meanwhile.

    Parameters
    ----------
    checkpoint : Checkpoint
        What to save and restore.
    directory : str or path-like
        The folder, made if it is missing. A relative path is made absolute at once. Only whole checkpoints of
        fastvar in it count, and no other file is touched.
    max_to_keep : int, optional
        How many of the newest to keep; None keeps all.
    keep_checkpoint_every_n_hours : float, optional
        Of the older ones, keep those that are at least this many hours apart.
    checkpoint_name : str
        Files are named `NAME-COUNT.h5`.
    step_counter : Variable or callable, optional
        Where the step is read from; by default the iterations of the only optimizer.
    checkpoint_interval : int, optional
        `save` does nothing until this many steps have passed since the last save.
    init_fn : callable, optional
        Called by `restore_or_initialize` where there is no checkpoint.
    keep_checkpoint_every_n_steps : int, optional
        Of the older ones, keep those that are at least this many steps apart.
    monitor : str, optional
        The metric, among those given to `save`, that says which checkpoints are the best.
    mode : {"min", "max"}
        Whether less or more of the metric is better.
    keep_best : int
        How many of the best to keep.
    hyperparameters : {"saved", "program"}
        Whose hyperparameters hold after `restore_or_initialize`, see `Checkpoint.restore`.

    Notes
    -----
    A checkpoint is kept if any of these rules keeps it, or if it is pinned. Others are removed only after the new
    one is durable and has been read back and verified.

    Examples
    --------
    >>> import fastvar as fv, tempfile
    >>> w = fv.Variable([1.0], name="w")
    >>> optimizer = fv.optimizers.SGD(0.5)
    >>> manager = fv.CheckpointManager(
    ...     fv.Checkpoint(variables=[w], optimizer=optimizer), tempfile.mkdtemp(), max_to_keep=2
    ... )
    >>> manager.restore_or_initialize()
    >>> for _ in range(3):
    ...     optimizer.apply([[1.0]], [w])
    ...     path = manager.save()
    >>> len(manager.checkpoints), manager.latest_checkpoint == path
    (2, True)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        directory: str | os.PathLike[str],
        max_to_keep: int | None = 5,
        keep_checkpoint_every_n_hours: float | None = None,
        checkpoint_name: str = "ckpt",
        step_counter: Any = None,
        checkpoint_interval: int | None = None,
        init_fn: Callable[[], object] | None = None,
        *,
        keep_checkpoint_every_n_steps: int | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        keep_best: int = 1,
        hyperparameters: Choice = "saved",
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(
                f"CheckpointManager: checkpoint must be a fastvar.Checkpoint, got {type(checkpoint).__name__}"
            )
        if checkpoint_interval is not None and (type(checkpoint_interval) is not int or checkpoint_interval < 1):
            raise ValueError(
                f"CheckpointManager: checkpoint_interval must be at least 1 or None, got {checkpoint_interval!r}"
            )
        if os.path.basename(checkpoint_name) != checkpoint_name or not checkpoint_name:
            raise ValueError(f"CheckpointManager: checkpoint_name must be a file name, got {checkpoint_name!r}")
        if checkpoint_interval is not None and step_counter is None and not checkpoint.has_step:
            raise ValueError(
                "CheckpointManager: checkpoint_interval needs a step_counter, as there is not just one optimizer"
            )
        self.checkpoint = checkpoint
        self.checkpoint_interval = checkpoint_interval
        self.init_fn = init_fn
        self.hyperparameters = checked_choice(hyperparameters, "CheckpointManager")
        self._step_counter = step_counter
        self._retention = Retention(
            max_to_keep, keep_checkpoint_every_n_hours, keep_checkpoint_every_n_steps, monitor, mode, keep_best
        )
        with failing(os.fsdecode(directory), "cannot be read"):
            self._folder = Folder(directory, checkpoint_name)
        self._staging, self._background, self._listener = Staging(), Background(), Listener()
        self._run = secrets.token_hex(16)
        self._last_step: int | None = None

    @property
    def directory(self) -> str:
        """The folder, as an absolute path."""
        return self._folder.directory

    @property
    def checkpoints(self) -> list[str]:
        """Paths of the checkpoints in the folder, oldest first."""
        return [found.path for found in self._folder.scan().found]

    @property
    def latest_checkpoint(self) -> str | None:
        """Path of the newest checkpoint, by the records in the files; None if there is none."""
        paths = self.checkpoints
        return paths[-1] if paths else None

    @property
    def best_checkpoint(self) -> str | None:
        """Path of the best checkpoint by `monitor`, earlier runs included; None if there is none."""
        ranked = self._retention.ranked(self._folder.scan().found)
        return ranked[0].path if ranked else None

    def history(self) -> History:
        """Return the steps, times and metrics of the checkpoints in the folder: columns, a table and a curve.

        It does not know those that have been removed.

        Examples
        --------
        >>> import fastvar as fv, tempfile
        >>> manager = fv.CheckpointManager(fv.Checkpoint(w=fv.Variable(1.0)), tempfile.mkdtemp())
        >>> for step, loss in [(100, 0.5), (200, 0.25)]:
        ...     path = manager.save(step, metrics={"loss": loss})
        >>> history = manager.history()
        >>> history.step, history.metrics["loss"]
        (array([100, 200]), array([0.5 , 0.25]))
        """
        return History(self._folder.scan().found)

    def _table(self) -> Table:
        rules = self._retention
        try:
            found = self._folder.scan().found
            rows = [("checkpoints", count(len(found), "file"))]
            rows += [("latest", f"{os.path.basename(f.path)}, step {f.step:,}") for f in found[-1:]]
            rows += [("best", f"{os.path.basename(f.path)}, step {f.step:,}") for f in rules.ranked(found)[:1]]
        except CheckpointError as error:
            rows = [("checkpoints", str(error))]
        return Table(f"CheckpointManager of {self.directory}", ("", ""), [*rows, ("keeps", str(rules))])

    def _step(self) -> int:
        if self._step_counter is None:
            return self.checkpoint.step()
        return checked_step(self._step_counter() if callable(self._step_counter) else self._step_counter)

    @overload
    def save(
        self,
        step: int | None = None,
        *,
        check_interval: Literal[False],
        blocking: bool = True,
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> str: ...
    @overload
    def save(
        self,
        step: int | None = None,
        check_interval: bool = True,
        *,
        blocking: bool = True,
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> str | None: ...
    @uncollected()
    def save(
        self,
        step: int | None = None,
        check_interval: bool = True,
        *,
        blocking: bool = True,
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> str | None:
        """Save, then remove what need not be kept. Return the path, or None if no save is due yet.

        Parameters
        ----------
        step : int, optional
            By default that of `step_counter`.
        check_interval : bool
            False saves even if fewer than `checkpoint_interval` steps have passed.
        blocking : bool
            False returns as soon as everything is copied; a thread writes the file and removes old ones. The file
            is durable when `wait`, `close` or the next `save` has returned; an error is raised there.
        metrics : mapping of str to float, optional
            Stored in the file: for `monitor`, and for `fastvar inspect` to show.

        Raises
        ------
        CheckpointError
            If it cannot be written, or another manager saves here; older checkpoints are untouched. Also if the
            last save was not blocking and failed: then this one is not made.
        """
        step = self._step() if step is None else checked_step(step)
        interval = self.checkpoint_interval if check_interval else None
        if interval and self._last_step is not None and step - self._last_step < interval:
            if not self._background.busy:
                self.wait()
            return None
        metrics = self._checked(metrics)
        self.wait()
        with failing(self.directory):
            self._folder.lock.acquire()
            self._folder.clean()
            counter = self._folder.next_counter()
        path = self._folder.path(counter)
        remove_old = functools.partial(retain, path, self._folder, self._retention)
        with self.checkpoint._hold():
            tensors, arrays, state, _ = self.checkpoint.collect()
            if not blocking:
                tensors = self._staging.copy(tensors)
            add_notes(state, metrics)
            write = prepare(path, tensors | arrays, state, step=step, saved=Saved(self._run, counter))
            if blocking:
                write()
        if blocking:
            remove_old()
        else:
            self._background.start(lambda: (write(), remove_old()))
        self._last_step = step
        return path

    def _checked(self, metrics: Mapping[str, Any] | None) -> dict[str, float]:
        values = {}
        for name, value in (metrics or {}).items():
            try:
                if isinstance(value, (str, bytes)) or not isinstance(name, str):
                    raise TypeError
                values[name] = float(value)
            except (TypeError, ValueError):
                raise TypeError(f"CheckpointManager: metric {name!r} must be a number, got {value!r}") from None
        monitor = self._retention.monitor
        if values and monitor is not None and monitor not in values:
            raise ValueError(f"CheckpointManager: monitor={monitor!r} is not among the metrics {sorted(values)}")
        return values

    def wait(self) -> None:
        """Wait until the last save is durable.

        Raises
        ------
        CheckpointError
            If the last save failed; raised once. Older checkpoints are untouched, the next save works as usual.
        """
        try:
            self._background.wait()
        except BaseException:
            self._last_step = None  # the next save is due at once
            raise

    def close(self) -> None:
        """Wait for the last save, unlock the folder, and handle signals as before."""
        try:
            self.wait()
        finally:
            self._listener.stop()
            self._folder.lock.release()

    def __enter__(self) -> Self:
        self._folder.lock.acquire()
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stopping(self) -> bool:
        """Whether the system has asked this process to end, by SIGTERM or SIGUSR1.

        From `with`, or the first use of this property, until `close` these signals do not end the process: the
        program saves and ends itself. A handler given to `signal.signal` before is still called. After `close`
        the value stays. Signals end a forked child as usual.

        Raises
        ------
        RuntimeError
            If neither `with` nor the first use of this property was in the main thread, where Python handles
            signals.
        """
        if not self._listener.started:
            self._listener.start()
        if not self._listener.started:
            raise RuntimeError(
                "CheckpointManager: stopping is known only if `with` enters the manager in the main thread"
            )
        return self._listener.called

    def pin(self, path: str) -> None:
        """Keep a checkpoint until `unpin`, by an empty file `NAME-COUNT.h5.pin` beside it (any tool may make one).

        Raises
        ------
        FileNotFoundError
            If the folder has no checkpoint of that name.
        """
        self._folder.pin(path, True)

    def unpin(self, path: str) -> None:
        """Remove the pin of a checkpoint, if it has one."""
        self._folder.pin(path, False)

    def restore_or_initialize(self, *, hyperparameters: Choice | None = None, cast: bool = False) -> str | None:
        """Restore the newest good checkpoint and return its path. If there is none, call `init_fn`, return None.

        A damaged checkpoint is skipped with a warning. So is a file whose name no manager gives (an absurd number,
        leading zeros); such a file alone does not prevent a fresh start.

        From now on others cannot save here. If another manager saves here already, this one cannot save, and a
        warning names the other. A program that only reads can pass `latest_checkpoint` to `Checkpoint.restore`.

        Parameters
        ----------
        hyperparameters : {"saved", "program"}, optional
            By default that of the manager; see `Checkpoint.restore`.
        cast : bool
            As in `Checkpoint.restore`.

        Raises
        ------
        CheckpointError
            If there are checkpoints, and all are damaged.
        ValueError
            If the newest good one does not match the objects.
        """
        choice = checked_choice(hyperparameters or self.hyperparameters, "CheckpointManager")
        self.wait()
        lock = self._folder.lock
        held = lock.held
        try:
            lock.acquire("this manager cannot save")
        except CheckpointError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
        try:
            return self._restore_newest(choice, cast)
        except BaseException:
            if not held:
                lock.release()
            raise

    def _restore_newest(self, choice: Choice, cast: bool) -> str | None:
        found, damaged, strangers = self._folder.scan()
        for stranger in strangers:
            warnings.warn(f"{stranger}; it is left alone", RuntimeWarning, stacklevel=3)
        for checkpoint in reversed(found):
            try:
                restored = self.checkpoint.restore(checkpoint.path, hyperparameters=choice, cast=cast)
                self._last_step = restored.step
            except OSError as error:
                of_file = isinstance(error, CheckpointError) or error.filename == checkpoint.path
                if not of_file:  # an object that is restored raised it
                    raise
                if isinstance(error, FileNotFoundError):  # another process has saved a newer one and removed it
                    return self._restore_newest(choice, cast)
                damaged.append(message(checkpoint.path, error))
                continue
            for problem in damaged:
                warnings.warn(f"{problem}; restored {checkpoint.path} instead", RuntimeWarning, stacklevel=3)
            return checkpoint.path
        self._refuse_if_all_are(damaged)
        others = self._folder.others()
        if others:
            warnings.warn(
                f"{self.directory}: holds no {self._folder.name}-*.h5, but {', '.join(others)}; "
                "starting afresh (checkpoint_name= chooses others)",
                RuntimeWarning,
                stacklevel=3,
            )
        if self.init_fn is not None:
            self.init_fn()
        return None

    def _refuse_if_all_are(self, damaged: list[str]) -> None:
        """Raise an error that lists the damaged checkpoints, when no other is left."""
        if damaged:
            raise CheckpointError(
                f"{self.directory}: no checkpoint is whole; move them away to start afresh:\n  "
                + "\n  ".join(damaged)
            )


def retain(path: str, folder: Folder, retention: Retention, of_parts: bool = True) -> None:
    """Remove what need not be kept, once a checkpoint is written. The folder stays locked until this ends.

    Verify the checkpoint before. Without `of_parts`, those who wrote its part files have verified them.
    """
    try:
        dispensable = retention.dispensable(folder.scan().found)
    except CheckpointError as error:
        warnings.warn(f"{path}: saved, but no older one was removed: {error}", RuntimeWarning, stacklevel=2)
        return
    if dispensable:
        with failing(path, "saved, but cannot be read again"), CheckpointFile(path) as file:
            file.verify(None if of_parts else [name for name in file.entries if not file.is_cut(name)])
    for found, problem in folder.remove(dispensable):
        warnings.warn(f"{found.path}: not removed: {problem.strerror}", RuntimeWarning, stacklevel=2)
