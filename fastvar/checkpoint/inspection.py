"""What is in a checkpoint, or in a folder of them, and whether it is whole."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from dataclasses import dataclass, field
from typing import Any

from fastvar.checkpoint import file_format
from fastvar.checkpoint.anyfile import Values, is_checkpoint, open_any, values_of
from fastvar.checkpoint.bookkeeping import PIN, is_reserved, read_notes
from fastvar.checkpoint.file_format import CheckpointError
from fastvar.checkpoint.foreign import Foreign
from fastvar.checkpoint.foreign.source import Opaque, open_regular
from fastvar.checkpoint.part_list import is_part
from fastvar.checkpoint.progress import progress
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.sets import CheckpointFile


@dataclass(frozen=True)
class Tensor:
    """A tensor of an `Inspection`; `values` only if they were asked for."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    values: Values | None = None


@dataclass(frozen=True)
class Inspection:
    """What is in a file.

    Attributes
    ----------
    path, format : str
    size : int
        Bytes of the file, and of its part files.
    tensors : list of Tensor
    step, counter, run : int, int, str, or None
        From the commit record; None for files of other libraries.
    time : float or None
        When it was saved, in seconds since 1970: the manager's note, or else the time of the file.
    metrics : dict
        Those that the manager's `save` was given.
    state : dict
        The JSON state of optimizers and other objects.
    pinned : bool
        Whether there is a file `PATH.pin`.
    notes : list of str
        What else is in a file of another library.
    parts : list of str
        The names of its part files.
    """

    path: str
    format: str
    size: int
    tensors: list[Tensor]
    step: int | None = None
    counter: int | None = None
    run: str | None = None
    time: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    pinned: bool = False
    notes: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listed:
    """A file in a folder of checkpoints: its contents, as far as they can be read, and what is wrong with it."""

    path: str
    size: int
    inspection: Inspection | None
    problem: str | None = None


def inspect(path: str | os.PathLike[str], *, values: bool = False, opaque: Opaque | None = None) -> Inspection:
    """Return what is in a checkpoint, or in a file of another library.

    Parameters
    ----------
    path : str or path-like
        The file.
    values : bool
        Whether to read (and so verify) all tensors for their norm, minimum, maximum, and count of numbers that are
        not finite. By default only names, dtypes and shapes are read.
    opaque : dtype or str, or mapping of str to these or None, optional
        The dtype of opaque bytes in a file of another library; see `load_foreign`.

    Raises
    ------
    CheckpointError
        If the file is damaged, or of no known format.
    OSError
        If it cannot be opened.

    Examples
    --------
    >>> import fastvar as fv, tempfile
    >>> w = fv.Variable([3.0, 4.0], name="w")
    >>> path = fv.Checkpoint(variables=[w]).save(tempfile.mkdtemp() + "/a.h5", step=7)
    >>> found = fv.checkpoint.inspect(path, values=True)
    >>> found.step, found.tensors[0].name, found.tensors[0].values.norm
    (7, 'variables/w', 5.0)
    """
    with open_any(path, opaque) as file:
        return _inspection(file, values)


def _inspection(file: File | Foreign, values: bool = False) -> Inspection:
    status, tensors = os.stat(file.path), []
    lengths = {name: e.dtype.itemsize * math.prod(e.shape) for name, e in file.entries.items()}
    with progress(f"reading {os.path.basename(file.path)}", sum(lengths.values()) if values else 0) as advance:
        for name, entry in file.entries.items():
            found = values_of(file.read(name)) if values else None
            tensors.append(Tensor(name, entry.dtype.name, entry.shape, lengths[name], found))
            advance(lengths[name])
    if not isinstance(file, File):
        return Inspection(file.path, file.format, status.st_size, tensors, time=status.st_mtime, notes=file.notes)
    notes = read_notes(file.state, status.st_mtime)
    return Inspection(
        file.path,
        "fastvar",
        file.size,
        tensors,
        step=file.step,
        counter=file.saved.counter,
        run=file.saved.run,
        time=notes.time,
        metrics=notes.metrics,
        state={key: value for key, value in file.state.items() if not is_reserved(key)},
        pinned=os.path.lexists(file.path + PIN),
        parts=[part.name for part in file.parts.files] if isinstance(file, CheckpointFile) and file.parts else [],
    )


def inspect_folder(path: str | os.PathLike[str], *, quick: bool = False) -> list[Listed]:
    """Return the checkpoints in a folder, whole and damaged, oldest first.

    It skips files of other libraries, objects that are not files (such as a pipe), and debris of killed saves.

    Parameters
    ----------
    path : str or path-like
        The folder.
    quick : bool
        Whether to leave the tensors' bytes unverified.
    """
    listed = []
    for file in checkpoints_in(path):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            listed.append(_listed(file, quick))
    return sorted(listed, key=lambda item: item.inspection.counter or 0 if item.inspection else 0)


def _listed(path: str, quick: bool) -> Listed:
    found = problem = None
    try:
        with CheckpointFile(path) as opened:
            found = _inspection(opened)
            if not quick:
                opened.verify()
    except CheckpointError as error:
        problem = str(error)
    except FileNotFoundError:
        if not os.path.islink(path):
            raise
        return Listed(path, 0, None, f"{path}: a link to a file that is not there")
    except OSError as error:
        problem = f"{path}: {error.strerror or error}"
    return Listed(path, found.size if found else os.stat(path).st_size, found, problem)


def checkpoints_in(folder: str | os.PathLike[str]) -> list[str]:
    """Return the files in a folder that are checkpoints, or were before they were damaged."""
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if _was_checkpoint(entry))


def _was_checkpoint(entry: os.DirEntry[str]) -> bool:
    named = entry.name.endswith(".h5")
    if entry.name.startswith(".") or is_part(entry.name):
        return False
    try:
        if not entry.is_file():
            return named and not os.path.exists(entry.path)  # a broken link, or removed: opening will tell
        if is_checkpoint(entry.path):
            return True
        with open_regular(entry.path) as stream:  # those of other libraries begin with HDF5's signature
            return named and stream.read(len(file_format.HDF5_SIGNATURE)) != file_format.HDF5_SIGNATURE
    except FileNotFoundError:  # removed meanwhile
        return False
    except OSError as error:  # it may be a checkpoint that cannot be read; ELOOP: a link in a circle
        return named and error.errno != errno.ELOOP


def verify(path: str | os.PathLike[str]) -> None:
    """Read a whole checkpoint and compare it with its checksums, in little memory.

    Raises
    ------
    CheckpointError
        If it is damaged (its `damaged` lists the tensors), or fastvar did not write it.
    OSError
        If it cannot be opened.

    Examples
    --------
    >>> import fastvar as fv, tempfile
    >>> w = fv.Variable([3.0, 4.0], name="w")
    >>> path = fv.Checkpoint(variables=[w]).save(tempfile.mkdtemp() + "/a.h5")
    >>> fv.checkpoint.verify(path)
    >>> with open(path, "r+b") as file:
    ...     _ = file.seek(-1, 2), file.write(b"!")
    >>> fv.checkpoint.verify(path)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    fastvar.CheckpointError: a.h5: damaged tensors: 'variables/w' ...
    """
    with CheckpointFile(path) as file:
        file.verify()
