"""A folder of checkpoints: which is the latest, when to save, which to keep."""

from __future__ import annotations

import os
import re
import secrets
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from fastvar.checkpoint.checkpoint import Checkpoint
from fastvar.checkpoint.reader import peek
from fastvar.checkpoint.record import CheckpointError, Saved


class Found(NamedTuple):
    """A checkpoint in the folder, ordered by the count of its save."""

    counter: int
    step: int
    time: float
    path: str


class CheckpointManager:
    """Saves a `Checkpoint` into a folder again and again, and finds the latest again.

    Parameters
    ----------
    checkpoint : Checkpoint
    directory : str or path-like
        Made if it is missing. Only whole checkpoints of fastvar in it count, and no other file is touched.
    max_to_keep : int, optional
        How many of the newest stay; None keeps all.
    keep_checkpoint_every_n_hours : float, optional
        Of the older ones, those at least so many hours apart stay for ever.
    checkpoint_name : str
        Files are called `NAME-COUNT.h5`.
    step_counter : Variable or callable, optional
        What the step is read from; by default the iterations of the only optimizer.
    checkpoint_interval : int, optional
        `save` does nothing until so many steps have passed since the last.
    init_fn : callable, optional
        Called by `restore_or_initialize` where there is no checkpoint.

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
    ) -> None:
        if max_to_keep is not None and max_to_keep < 1:
            raise ValueError(f"CheckpointManager: max_to_keep must be at least 1 or None, got {max_to_keep}")
        if checkpoint_interval is not None and checkpoint_interval < 1:
            raise ValueError(
                f"CheckpointManager: checkpoint_interval must be at least 1 or None, got {checkpoint_interval}"
            )
        if os.path.basename(checkpoint_name) != checkpoint_name or not checkpoint_name:
            raise ValueError(f"CheckpointManager: checkpoint_name must be a file name, got {checkpoint_name!r}")
        self.checkpoint = checkpoint
        self.directory = os.fspath(directory)
        self.max_to_keep = max_to_keep
        self.keep_checkpoint_every_n_hours = keep_checkpoint_every_n_hours
        self.checkpoint_name = checkpoint_name
        self.checkpoint_interval = checkpoint_interval
        self.init_fn = init_fn
        self._step_counter = step_counter
        self._run = secrets.token_hex(16)
        self._last_step: int | None = None
        if checkpoint_interval is not None and step_counter is None and not checkpoint.has_step:
            raise ValueError(
                "CheckpointManager: checkpoint_interval needs a step_counter, as there is not just one optimizer"
            )
        os.makedirs(self.directory, exist_ok=True)

    def _scan(self) -> tuple[list[Found], list[str]]:
        """Return the checkpoints, oldest first, and messages about files that look like damaged ones."""
        found, damaged = [], []
        for entry in os.scandir(self.directory):
            if not self._number_after(entry.name):
                continue
            try:
                record = peek(entry.path)
                found.append(Found(record.saved.counter, record.step, entry.stat().st_mtime, entry.path))
            except (CheckpointError, FileNotFoundError) as error:
                damaged.append(str(error))
        return sorted(found), damaged

    def _number_after(self, name: str) -> int:
        """Return the number that follows the one in the name of a file of ours; 0 for any other file."""
        match = re.fullmatch(re.escape(self.checkpoint_name) + r"-(\d+)\.h5", name)
        return int(match[1]) + 1 if match else 0

    @property
    def checkpoints(self) -> list[str]:
        """Paths of the checkpoints in the folder, oldest first."""
        return [found.path for found in self._scan()[0]]

    @property
    def latest_checkpoint(self) -> str | None:
        """Path of the newest checkpoint, found by the records in the files; None if there is none."""
        paths = self.checkpoints
        return paths[-1] if paths else None

    def _step(self) -> int:
        if self._step_counter is None:
            return self.checkpoint.step()
        return int(self._step_counter() if callable(self._step_counter) else self._step_counter)

    def save(self, step: int | None = None, check_interval: bool = True) -> str | None:
        """Save, and then remove what need not be kept; return the path, or None if it is not yet time.

        Parameters
        ----------
        step : int, optional
            By default that of `step_counter`.
        check_interval : bool
            False saves even if `checkpoint_interval` steps have not passed yet.

        Raises
        ------
        CheckpointError
            If it cannot be written; older checkpoints are untouched.
        """
        found, _ = self._scan()
        step = self._step() if step is None else step
        interval = self.checkpoint_interval if check_interval else None
        if interval and self._last_step is not None and step - self._last_step < interval:
            return None
        numbers = [found[-1].counter + 1] if found else [1]  # and beyond the names of damaged ones
        counter = max(numbers + [self._number_after(name) for name in os.listdir(self.directory)])
        path = os.path.join(self.directory, f"{self.checkpoint_name}-{counter}.h5")
        self.checkpoint.save(path, step=step, saved=Saved(self._run, counter))
        self._last_step = step
        self._sweep([*found, Found(counter, step, time.time(), path)])
        return path

    def _sweep(self, found: list[Found]) -> None:
        """Remove the older ones, except those kept by the hour."""
        if self.max_to_keep is None:
            return
        old = found[: -self.max_to_keep]
        kept_at = found[0].time  # those kept by the hour are the oldest in the folder
        for checkpoint in old:
            hours = (checkpoint.time - kept_at) / 3600
            every = self.keep_checkpoint_every_n_hours
            if every is not None and (hours >= every or checkpoint is found[0]):
                kept_at = checkpoint.time
            else:
                os.unlink(checkpoint.path)

    def restore_or_initialize(self) -> str | None:
        """Restore the newest good checkpoint and return its path; without any, call `init_fn`, return None.

        A damaged one is passed over with a warning.

        Raises
        ------
        CheckpointError
            If there are checkpoints, and all are damaged.
        ValueError
            If the newest good one does not match the objects.
        """
        found, damaged = self._scan()
        for checkpoint in reversed(found):
            try:
                self._last_step = self.checkpoint.restore(checkpoint.path).step
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            for message in damaged:
                warnings.warn(f"{message}; restored {checkpoint.path} instead", RuntimeWarning, stacklevel=2)
            return checkpoint.path
        if damaged:
            raise CheckpointError(
                f"{self.directory}: no checkpoint is whole; move them away to start afresh:\n  "
                + "\n  ".join(damaged)
            )
        if self.init_fn is not None:
            self.init_fn()
        return None
