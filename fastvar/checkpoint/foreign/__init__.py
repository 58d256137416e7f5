"""Files that others wrote, read with care: plain HDF5, Keras's `.weights.h5`, `.npz`, safetensors."""

from __future__ import annotations

import os
from typing import BinaryIO

from fastvar.buffers import Array
from fastvar.checkpoint.foreign.hdf5 import Hdf5
from fastvar.checkpoint.foreign.npz import Npz
from fastvar.checkpoint.foreign.safetensors import Safetensors
from fastvar.checkpoint.foreign.source import Foreign, open_regular
from fastvar.checkpoint.record import HDF5_SIGNATURE, MAGIC, CheckpointError

__all__ = ["Foreign", "load_foreign", "open_foreign"]


def load_foreign(path: str | os.PathLike[str], *, edited: bool = False) -> dict[str, Array]:
    """Return all tensors of a file that fastvar did not write, by the names that they have there.

    Reads HDF5 (h5py, Keras's `.weights.h5`), `.npz` and safetensors, told apart by their content. The file is
    not trusted: links to other files, external storage, virtual datasets, filters other than h5py's own,
    pickles, and data that would take more room than the file can hold are refused, and no other file is
    opened. Text is left out. There are no checksums to verify in most of these formats, and it is libhdf5
    itself that parses HDF5: prefer safetensors from strangers.

    Parameters
    ----------
    path : str or path-like
        The file.
    edited : bool
        Whether a checkpoint of fastvar may be read so, too, that another program has changed: unverified.
        Names are then those of `list_variables`, such as `variables/NAME`.

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
    with open_foreign(path, edited=edited) as file:
        return {name: file.read(name) for name in file.entries}


def open_foreign(path: str | os.PathLike[str], *, edited: bool = False) -> Foreign:
    """Open a file as `load_foreign` does, and read none of its tensors yet."""
    path = os.fspath(path)
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
    return kind(path, stream)


def _is_hdf5(stream: BinaryIO) -> bool:
    """Whether the signature stands where the format allows it: at 0, 512, and so on, doubling."""
    size, at = os.fstat(stream.fileno()).st_size, 0
    while at < size:
        stream.seek(at)
        if stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
            return True
        at = max(2 * at, 512)
    return False
