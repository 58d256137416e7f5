"""TensorFlow 1's `tf.train.Saver`, with the same files."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterable, Mapping
from typing import Any, Never

from fastvar.checkpoint.checkpoint import Checkpoint
from fastvar.checkpoint.contents import Named
from fastvar.checkpoint.file_format import checked_step
from fastvar.checkpoint.part_list import is_part
from fastvar.checkpoint.publishing import absolute
from fastvar.checkpoint.report import Restored
from fastvar.variable import Variable


class Saver:
    """Saves and restores a list of variables, as `tf.train.Saver` does, without a session.

    Parameters
    ----------
    var_list : iterable of Variable, or mapping of str to Variable
        Required: unlike TensorFlow 1, fastvar has no graph that collects all variables. A mapping gives the
        names in the file. In a list, variables without a name are named `0`, `1`, ...
    max_to_keep : int, optional
        How many of the files that this saver wrote to keep; None or 0 keeps all.

    Examples
    --------
    >>> import fastvar as fv, tempfile
    >>> w = fv.Variable([1.0, 2.0])
    >>> saver = fv.Saver({"w": w})
    >>> path = saver.save(tempfile.mkdtemp() + "/model", global_step=10)
    >>> path.endswith("model-10.h5")
    True
    >>> w[...] = 0
    >>> saver.restore(path).step
    10
    >>> w.value
    array([1., 2.])
    """

    def __init__(
        self, var_list: Iterable[Variable] | Mapping[str, Variable] | None = None, max_to_keep: int | None = 5
    ) -> None:
        if var_list is None:
            raise TypeError(
                "Saver: var_list is missing; fastvar has no graph that collects all variables, so list them: "
                "Saver([w, b]), or Saver(module.variables)"
            )
        if isinstance(var_list, Mapping):
            named = dict(var_list)
        else:
            listed = list(var_list)
            named = {getattr(v, "name", None) or str(i): v for i, v in enumerate(listed)}
            if len(named) != len(listed):
                raise ValueError("Saver: two variables have one name; pass a mapping of names to variables")
        if not all(isinstance(v, Variable) for v in named.values()):
            raise TypeError("Saver: var_list must hold fastvar.Variable only")
        if len({id(v) for v in named.values()}) != len(named):
            raise ValueError("Saver: a variable is listed twice")
        self._checkpoint = Checkpoint(Named(named))
        self._max_to_keep = max_to_keep
        self.last_checkpoints: list[str] = []

    def save(
        self, path: str | os.PathLike[str], *session: Never, global_step: int | Variable | None = None
    ) -> str:
        """Write the variables to `PATH-STEP.h5`, or `PATH.h5` without a step, and return that path, absolute.

        A file of that name is replaced. Then the oldest beyond `max_to_keep` are removed.

        Raises
        ------
        CheckpointError
            If it cannot be written; older files are untouched.
        """
        _refuse_session("save(path, global_step=step)", path, session)
        stem, suffix = os.path.splitext(absolute(path))
        if suffix != ".h5":
            stem, suffix = stem + suffix, ".h5"
        step = None if global_step is None else checked_step(global_step)
        target = stem + (f"-{step}" if step is not None else "") + suffix
        self._checkpoint.save(target, step=step or 0, overwrite=True)
        self.last_checkpoints = [p for p in self.last_checkpoints if p != target] + [target]
        while self._max_to_keep and len(self.last_checkpoints) > self._max_to_keep:
            oldest = self.last_checkpoints.pop(0)
            if os.path.exists(oldest):
                os.unlink(oldest)
        return target

    def restore(self, path: str | os.PathLike[str], *session: Never, **options: Any) -> Restored:
        """Read the variables from a file that `save` returned, with or without its `.h5`.

        Options are those of `Checkpoint.restore`.
        """
        _refuse_session("restore(path)", path, session)
        path = os.fsdecode(path)
        return self._checkpoint.restore(written(path if path.endswith(".h5") else f"{path}.h5"), **options)


def latest_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Return the path of the file that was written last in a folder, as `tf.train.latest_checkpoint`, or None.

    It is not read: `Saver.restore` verifies it. `CheckpointManager` also goes back to an older one when damaged.

    Examples
    --------
    >>> import fastvar as fv, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> saver = fv.Saver([fv.Variable([1.0], name="w")])
    >>> paths = [saver.save(os.path.join(folder, "model"), global_step=step) for step in (9, 10)]
    >>> os.path.basename(fv.latest_checkpoint(folder))
    'model-10.h5'
    """
    with contextlib.suppress(FileNotFoundError), os.scandir(absolute(folder)) as entries:
        files = [e for e in entries if e.name.endswith(".h5") and not is_part(e.name) and e.is_file()]
        newest = max(files, key=lambda e: (e.stat().st_mtime_ns, len(e.name), e.name), default=None)
        return newest and newest.path
    return None


def _refuse_session(usage: str, path: Any, more: tuple[Any, ...]) -> None:
    if more or not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"Saver: fastvar has no sessions; call saver.{usage} without one")


def written(path: str | os.PathLike[str]) -> str:
    """Return the path of the file that a saver wrote for `path`, which may lack the `.h5`, or else `path`.

    Raises
    ------
    FileNotFoundError
        If it has only written files with a step, which the error names.
    """
    path = os.fsdecode(path)
    if os.path.isfile(path):
        return path
    if os.path.isfile(f"{path}.h5"):
        return f"{path}.h5"
    if os.path.exists(path):  # not a file: the reader says what it is
        return path
    stem = path.removesuffix(".h5")
    numbered = map(os.path.basename, glob.glob(f"{glob.escape(stem)}-*[0-9].h5"))
    if steps := sorted(name for name in numbered if not is_part(name)):
        raise FileNotFoundError(errno.ENOENT, f"no such file, but with a step there are {', '.join(steps)}", path)
    return path
