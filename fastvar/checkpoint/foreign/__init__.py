"""Files of other libraries, which are not trusted: HDF5, Keras's `.weights.h5`, `.npz`, safetensors."""

from __future__ import annotations

import os
from typing import BinaryIO

from fastvar.buffers import Array
from fastvar.checkpoint.file_format import HDF5_SIGNATURE, MAGIC, TORCH, CheckpointError, is_torch
from fastvar.checkpoint.foreign.hdf5 import Hdf5
from fastvar.checkpoint.foreign.npz import Npz
from fastvar.checkpoint.foreign.safetensors import Safetensors
from fastvar.checkpoint.foreign.source import Foreign, Opaque, Types, open_regular

__all__ = ["Foreign", "load_foreign", "open_foreign"]


class Loaded(dict[str, Array]):
    """The tensors of a file by name.

    Attributes
    ----------
    left : dict of str to str
        Tensors that cannot be read, and why; the KeyError for such a name says so, too.
    notes : list of str
        Everything that was left out: these tensors, and data that is not a tensor, such as text.
    """

    def __init__(self, file: Foreign) -> None:
        super().__init__((name, file.read(name)) for name in file.entries)
        self.left: dict[str, str] = file.left
        self.notes: list[str] = file.notes

    def __missing__(self, name: str) -> Array:
        raise KeyError(f"{name}: {self.left[name]}" if name in self.left else name)


def load_foreign(path: str | os.PathLike[str], *, edited: bool = False, opaque: Opaque | None = None) -> Loaded:
    """Return all tensors of a file that fastvar did not write, by their names in the file.

    Reads HDF5 (h5py, Keras's `.weights.h5`), `.npz` and safetensors, recognised by their content. The file is not
    trusted. Links to other files, external storage, virtual datasets, and data that claim more space than the
    file can hold are errors. No other file is opened, and no pickle is loaded. Text is left out. So is, with a
    note, a tensor that cannot be read: structures, references, objects, filters other than h5py's own (an error
    if nothing else is there). Data that were never written have their fill value. Most of these formats have no
    checksums, and libhdf5 itself parses HDF5: prefer safetensors from strangers.

    Parameters
    ----------
    path : str or path-like
        The file.
    edited : bool
        Whether to read also a checkpoint of fastvar that another program has changed, without verification.
        Names are then those of `list_variables`, such as `variables/NAME`.
    opaque : dtype or str, or mapping of str to these or None, optional
        The dtype of tensors that are opaque bytes in the file, as h5py and `np.savez` write bfloat16 and 8-bit
        floats: one dtype for all of that size, or one for each name (None leaves a tensor out). It is not needed
        where an attribute `dtype` names the type, as in files of Keras.

    Returns
    -------
    dict of str to array
        It has two attributes: `left`, what cannot be read, and why; `notes`, everything that was left out.

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
    """Open a file as `load_foreign` does, without reading tensors."""
    path, types = os.fspath(path), Types(opaque)
    stream = open_regular(path)
    try:
        head = stream.read(512)
        fastvar = head.startswith(MAGIC)
        if fastvar and not edited:
            raise ValueError(
                f"{path}: written by fastvar; use restore, which verifies it (or edited=True, if another "
                "program has changed it since)"
            )
        kind: type[Foreign]
        if fastvar or _is_hdf5(stream):
            kind = Hdf5
        elif is_torch(head):
            raise CheckpointError(f"{path}: {TORCH}")
        elif head[:2] == b"PK":
            kind = Npz
        elif head[8:9] == b"{":
            kind = Safetensors
        elif not head:
            raise CheckpointError(f"{path}: the file is empty")
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
    """Whether the signature is where the format allows it: at 0, 512, 1024, 2048, ..."""
    size, at = os.fstat(stream.fileno()).st_size, 0
    while at < size:
        stream.seek(at)
        if stream.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
            return True
        at = max(2 * at, 512)
    return False
