"""Files that others wrote, read with care: plain HDF5, Keras's `.weights.h5`, `.npz`, safetensors."""

from __future__ import annotations

import os
from typing import BinaryIO

from fastvar.buffers import Array
from fastvar.checkpoint.file_format import HDF5_SIGNATURE, MAGIC, CheckpointError
from fastvar.checkpoint.foreign.hdf5 import Hdf5
from fastvar.checkpoint.foreign.npz import Npz
from fastvar.checkpoint.foreign.safetensors import Safetensors
from fastvar.checkpoint.foreign.source import Foreign, Opaque, Types, open_regular

__all__ = ["Foreign", "load_foreign", "open_foreign"]


class Loaded(dict[str, Array]):
    """The tensors of a file by their names.

    Attributes
    ----------
    left : dict of str to str
        What cannot be read, and why; an error of a missing key says it, too.
    notes : list of str
        The same, and what else is in the file, such as text.
    """

    def __init__(self, file: Foreign) -> None:
        super().__init__((name, file.read(name)) for name in file.entries)
        self.left, self.notes = file.left, file.notes

    def __missing__(self, name: str) -> Array:
        raise KeyError(f"{name}: {self.left[name]}" if name in self.left else name)


def load_foreign(path: str | os.PathLike[str], *, edited: bool = False, opaque: Opaque | None = None) -> Loaded:
    """Return all tensors of a file that fastvar did not write, by the names that they have there.

    Reads HDF5 (h5py, Keras's `.weights.h5`), `.npz` and safetensors, told apart by their content. The file is
    not trusted: links to other files, external storage, virtual datasets, and data that would take more room
    than the file can hold are refused; no other file is opened, and no pickle. Text is left out, and so is, with
    a note, each tensor that cannot be read alone: structures, references, objects, filters other than h5py's own
    (if nothing else is there, it is an error). What was never written is its fill value. There are no checksums
    to verify in most of these formats, and it is libhdf5 itself that parses HDF5: prefer safetensors from
    strangers.

    Parameters
    ----------
    path : str or path-like
        The file.
    edited : bool
        Whether a checkpoint of fastvar may be read so, too, that another program has changed: unverified.
        Names are then those of `list_variables`, such as `variables/NAME`.
    opaque : dtype or str, or mapping of str to these or None, optional
        The dtype of tensors that are opaque bytes in the file, as h5py and `np.savez` write bfloat16 and 8-bit
        floats: one for all that have as many bytes a number, or by name (None leaves a tensor out). Where an
        attribute `dtype` tells, as in files of Keras, it is not needed.

    Returns
    -------
    dict of str to array
        With two attributes: `left`, what cannot be read, and why; `notes`, what else the file has.

    Raises
    ------
    CheckpointError
        If the file is of no such format, damaged, or has what is refused.
    ValueError
        If fastvar wrote it.
    OSError
        If it cannot be opened, such as FileNotFoundError.

    Examples
    --------
    >>> import fastvar as fv, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/model.npz"
    >>> np.savez(path, **{"encoder/kernel": np.ones(2, np.float32)})
    >>> fv.checkpoint.load_foreign(path)
    {'encoder/kernel': array([1., 1.], dtype=float32)}
    """
    with open_foreign(path, edited=edited, opaque=opaque) as file:
        return Loaded(file)


def open_foreign(path: str | os.PathLike[str], *, edited: bool = False, opaque: Opaque | None = None) -> Foreign:
    """Open a file as `load_foreign` does, and read none of its tensors yet."""
    path, types = os.fspath(path), Types(opaque)
    stream = open_regular(path)
    try:
        head = stream.read(12)
        fastvar = head == MAGIC
        if fastvar and not edited:
            raise ValueError(
                f"{path}: written by fastvar; use restore, which verifies it (or edited=True, if another "
                "program has changed it since)"
            )
        kind: type[Foreign]
        if fastvar or _is_hdf5(stream):
            kind = Hdf5
        elif head[:2] == b"PK":
            kind = Npz
        elif head[8:9] == b"{":
            kind = Safetensors
        else:
            raise CheckpointError(f"{path}: neither HDF5 nor .npz nor safetensors")
        stream.seek(0)
    except BaseException:
        stream.close()
        raise
    file = kind(path, stream, types)
    try:
        types.check(path)
    except BaseException:
        file.close()
        raise
    return file


def _is_hdf5(stream: BinaryIO) -> bool:
    """Whether the signature stands where the format allows it: at 0, 512, and so on, doubling."""
    size, at = os.fstat(stream.fileno()).st_size, 0
    while at < size:
        stream.seek(at)
        if stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
            return True
        at = max(2 * at, 512)
    return False
