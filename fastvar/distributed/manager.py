"""Many checkpoints of many ranks during training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self, SupportsFloat

from fastvar import checkpoint
from fastvar.checkpoint.file_format import CheckpointError, Saved, checked_step
from fastvar.checkpoint.folder import message
from fastvar.checkpoint.manager import retain
from fastvar.checkpoint.restore import Choice, checked_choice
from fastvar.distributed.checkpoint import Checkpoint


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

    def save(  # type: ignore[override]
        self,
        step: int | None = None,
        check_interval: bool = True,
        *,
        metrics: Mapping[str, SupportsFloat] | None = None,
    ) -> str | None:
        """Save on all ranks, then remove what need not be kept. Return the path, or None if no save is due yet.

        Parameters
        ----------
        step, check_interval, metrics
            As for `fastvar.CheckpointManager.save`. Metrics are those of rank 0.

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

        def begin() -> tuple[str, int, str]:
            folder.lock.acquire()
            folder.clean()
            counter = folder.next_counter()
            return folder.path(counter), counter, self._run

        path, counter, run = self.checkpoint._on_first(f"save step {step}", begin)
        self.checkpoint._write_set(path, folder.lock, step, saved=Saved(run, counter), metrics=checked)
        self.checkpoint._on_first("remove old checkpoints", lambda: retain(path, folder, self._retention))
        self._last_step = step
        return str(path)

    def restore_or_initialize(self, *, hyperparameters: Choice | None = None, cast: bool = False) -> str | None:
        """Restore the newest checkpoint that is good on all ranks; see `fastvar.CheckpointManager`.

        Raises
        ------
        CheckpointError
            On all ranks, if there are checkpoints and all are damaged, or another program saves here.
        """
        choice = checked_choice(hyperparameters or self.hyperparameters, "CheckpointManager")

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
        if damaged:
            raise CheckpointError(
                f"{self.directory}: no checkpoint is whole; move them away to start afresh:\n  "
                + "\n  ".join(damaged)
            )
        if self.init_fn is not None:
            self.init_fn()
        return None

    def __enter__(self) -> Self:
        self.checkpoint._on_first("open the folder", self._folder.lock.acquire)
        self._listener.start()
        return self


def _warn(messages: Iterable[str]) -> None:
    for text in messages:
        warnings.warn(text, RuntimeWarning, stacklevel=4)
