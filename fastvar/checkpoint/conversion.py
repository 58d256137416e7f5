"""Convert tensors from one file format to another."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint import file_format, publishing
from fastvar.checkpoint.anyfile import exported, open_any
from fastvar.checkpoint.bookkeeping import PARTS
from fastvar.checkpoint.foreign import Foreign
from fastvar.checkpoint.foreign.safetensors import METADATA, NAMES
from fastvar.checkpoint.foreign.source import Opaque
from fastvar.checkpoint.masters import is_master
from fastvar.checkpoint.progress import progress
from fastvar.checkpoint.reader import File
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.checkpoint.writer import write
from fastvar.tables import count

FORMATS = ("fastvar", "h5", "npz", "safetensors")
NAMINGS = ("fastvar", "torch")
_SUFFIXES = {".npz": "npz", ".safetensors": "safetensors", ".h5": "h5", ".hdf5": "h5"}
_FEW = 10  # names in a message
_MAX_MEMBER = (1 << 16) - 1  # bytes of a name in a zip
_MAX_HEADER = 100_000_000  # bytes, of the safetensors library
_PICKLE = "; PyTorch reads .safetensors by safetensors.torch.load_file; names='torch' is for load_state_dict"
_DTYPES = {dtype: name for name, dtype in NAMES.items()}


class _Tensors:
    """The tensors of a file by their names in the new file, read one at a time."""

    def __init__(self, file: File | Foreign, names: Mapping[str, str]) -> None:
        self._file, self._names = file, names
        self.specs = {name: file.entries[own] for name, own in self._names.items()}
        self.length = sum(spec.dtype.itemsize * math.prod(spec.shape) for spec in self.specs.values())

    def read(self, name: str) -> Array:
        return self._file.read(self._names[name])


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    to: str | None = None,
    overwrite: bool = False,
    opaque: Opaque | None = None,
    weights_only: bool = False,
    names: str | None = None,
    prefix: str | None = None,
) -> list[str]:
    """Copy all tensors of a file to a new one of another format, which appears whole or not at all.

    Outside fastvar, variables have their own names, and other tensors such as slots have those of
    `list_variables`. The state of optimizers and other objects is left out: a file that is converted back is
    imported, not resumed. Only one tensor at a time is in memory, or all if the target is a checkpoint.

    Parameters
    ----------
    source, target : str or path-like
        Files. The source may be of any format that `load_foreign` reads, or a checkpoint.
    to : {"fastvar", "h5", "npz", "safetensors"}, optional
        By default the format of the target's ending; `.h5` is plain HDF5 if the source is a checkpoint, and a
        checkpoint otherwise. "fastvar" makes one checkpoint, with its state, of a set of part files.
    overwrite : bool
        Whether to replace an existing target.
    opaque : dtype or str, or mapping of str to these or None, optional
        The dtype of opaque bytes in a source of another library, such as `"bfloat16"`; see `load_foreign`.
    weights_only : bool
        Whether to leave out the slots of optimizers, if the source is a checkpoint.
    names : {"fastvar", "torch"}, optional
        "torch" writes dots in place of slashes, as in the `state_dict` of a module of PyTorch. Arrays stay as they
        are: kernels of dense layers are not transposed.
    prefix : str, optional
        Take only the tensors whose names are below this one, such as "model", and leave it out of the new names.

    Returns
    -------
    list of str
        What is different in the new file, such as bfloat16 that became float32 in `.npz`.

    Raises
    ------
    FileExistsError
        If the target exists, and `overwrite` is false.
    CheckpointError
        If the source is damaged, or of no known format.
    ValueError
        If the target's format is unknown or cannot hold a tensor.

    Examples
    --------
    >>> import fastvar as fv, numpy as np, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> w = fv.Variable([3.0, 4.0], name="body/w")
    >>> path = fv.Checkpoint(variables=[w]).save(folder + "/a.h5")
    >>> fv.checkpoint.convert(path, folder + "/a.npz")
    []
    >>> np.load(folder + "/a.npz")["body/w"]
    array([3., 4.])
    """
    target = publishing.absolute(target)
    with open_any(source, opaque) as file:
        if to is None:
            to = _SUFFIXES.get(os.path.splitext(target)[1].lower())
            to = "fastvar" if to == "h5" and isinstance(file, Foreign) else to
        if to not in FORMATS:
            wanted = f"must end in {', '.join(_SUFFIXES)}, or give the format, as to='safetensors'"
            raise ValueError(f"{target}: {wanted}{_PICKLE * target.endswith(('.pt', '.pth'))}")
        if to == "fastvar" and isinstance(file, File):
            if not (isinstance(file, CheckpointFile) and file.parts):
                raise ValueError(f"{file.path}: is a checkpoint already; copy the file")
            if weights_only or names or prefix:
                raise ValueError("convert: a set becomes one whole file; leave out weights_only, names, prefix")
            _merge(file, target, overwrite)
            return []
        tensors = _Tensors(file, _renamed(file, weights_only, names, prefix))
        notes = [f"{note} (left out)" for note in file.notes] if isinstance(file, Foreign) else []
        if isinstance(file, File) and (file.state or any(name.startswith("state/") for name in file.entries)):
            notes.append("the state of optimizers and other objects was left out")
        first = {name.partition(".")[0] for name in tensors.specs}
        if names == "torch" and prefix is None and len(first) == 1:
            notes.append(f"all names begin with {(owner := first.pop())!r}; prefix={owner!r} leaves it out")
        _check(tensors, to, target)
        with progress(f"converting to {os.path.basename(target)}", tensors.length) as advance:
            if to == "fastvar":
                arrays = {}
                for name in tensors.specs:
                    arrays[f"variables/{name}"] = array = tensors.read(name)
                    advance(array.nbytes)
                write(target, arrays, {}, step=0, replace=overwrite)
                return notes
            with _new_file(target, overwrite) as stream:
                writers: dict[str, Callable[..., None]] = {"h5": _h5, "npz": _npz, "safetensors": _safetensors}
                writers[to](stream, tensors, advance)
    if to == "npz":
        narrow = [name for name, spec in tensors.specs.items() if spec.dtype.name in file_format.EXTENDED]
        notes += [f"{name}: {tensors.specs[name].dtype} became float32" for name in narrow]
    return notes


def _merge(file: CheckpointFile, target: str, overwrite: bool) -> None:
    """Write a set of part files as one checkpoint, with its state."""
    state = {keyword: value for keyword, value in file.state.items() if keyword != PARTS}
    total = sum(entry.length for entry in file.entries.values())
    with progress(f"converting to {os.path.basename(target)}", total) as advance:
        arrays = {}
        for name, entry in file.entries.items():
            arrays[name] = file.read(name)
            advance(entry.length)
        write(target, arrays, state, step=file.step, replace=overwrite, saved=file.saved)


def _renamed(file: File | Foreign, weights_only: bool, names: str | None, prefix: str | None) -> dict[str, str]:
    """Map the names in the new file to those in the old one."""
    if names not in (None, *NAMINGS):
        raise ValueError(f"convert: names must be {' or '.join(NAMINGS)}, got {names!r}")
    renamed: dict[str, str] = {}
    for name, own in exported(file).items():
        master = isinstance(file, File) and is_master(own, file.entries)
        if weights_only and isinstance(file, File) and (master or not own.startswith("variables/")):
            continue
        new = name.replace("/", ".") if names == "torch" else name
        if prefix is not None:
            if not name.startswith((f"{prefix}/", f"{prefix}.")):
                continue
            new = new[len(prefix) + 1 :]
        if renamed.setdefault(new, own) != own:
            raise ValueError(f"{file.path}: {own!r} and {renamed[new]!r} would both be named {new!r}")
    if prefix is not None and not renamed:
        first = [*dict.fromkeys(re.split(r"[/.]", name)[0] for name in exported(file))]
        known = f"{', '.join(first[:_FEW])}{', ...' * (len(first) > _FEW)}"
        raise ValueError(f"{file.path}: prefix must be that of a tensor ({known}), got {prefix!r}")
    return renamed


def _check(tensors: _Tensors, to: str, target: str) -> None:
    """Raise ValueError for names and dtypes that the format cannot hold."""
    if to in ("fastvar", "h5"):
        file_format.check_names(f"variables/{name}" for name in tensors.specs)
        return
    for name, spec in tensors.specs.items():
        reason = _unfit(name, to, tensors.specs)
        if reason:
            raise ValueError(f"{target}: {to} cannot hold the name {name!r}: {reason}")
        if to == "safetensors" and spec.dtype.name not in _DTYPES:
            raise ValueError(f"{target}: safetensors cannot hold {spec.dtype}, the dtype of {name!r}")


def _unfit(name: str, to: str, others: Container[str]) -> str:
    """Return why `.npz` or safetensors cannot hold a tensor of this name; empty if it can."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if to == "safetensors":
        return "the format reserves it" if name == METADATA else ""
    if "\0" in name or length > _MAX_MEMBER - len(".npy"):
        return f"it has a NUL, or more than {_MAX_MEMBER} bytes with .npy"
    if name.endswith(".npy") and name.removesuffix(".npy") in others:
        return f"np.load would read {name.removesuffix('.npy')!r} instead"
    return ""


@contextlib.contextmanager
def _new_file(path: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Give a temporary file that gets the name `path` at the end, or is removed after an error."""
    if overwrite:
        publishing.check_replaceable(path)
    elif os.path.lexists(path):
        raise publishing.taken(path)
    try:
        with publishing.temporary(os.path.dirname(path) or ".") as (temporary, descriptor):
            with os.fdopen(descriptor, "rb+") as stream:
                yield stream
                stream.flush()
                os.fsync(descriptor)
            publishing.publish(temporary, path, overwrite)
    except FileExistsError:
        raise publishing.taken(path) from None


def _h5(stream: BinaryIO, tensors: _Tensors, advance: Callable[[int], Any]) -> None:
    import h5py  # type: ignore[import-untyped]

    with h5py.File(stream, "w", libver=("v110", "v110")) as file:
        for name in tensors.specs:
            array = tensors.read(name)
            extended = array.dtype.name in file_format.EXTENDED
            dataset = file.create_dataset(name, data=array.view(f"u{array.itemsize}") if extended else array)
            if extended:
                dataset.attrs["dtype"] = np.bytes_(array.dtype.name)
            advance(array.nbytes)


def _npz(stream: BinaryIO, tensors: _Tensors, advance: Callable[[int], Any]) -> None:
    with zipfile.ZipFile(stream, "w") as file:
        for name in tensors.specs:
            array = tensors.read(name)
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                wide = array.astype(np.float32) if array.dtype.name in file_format.EXTENDED else array
                np.lib.format.write_array(member, wide, allow_pickle=False)
            advance(array.nbytes)


def _safetensors(stream: BinaryIO, tensors: _Tensors, advance: Callable[[int], Any]) -> None:
    ordered = sorted(
        tensors.specs, key=lambda name: -tensors.specs[name].dtype.itemsize
    )  # so that all are aligned
    header, end = {}, 0
    for name in ordered:
        spec = tensors.specs[name]
        start, end = end, end + spec.dtype.itemsize * math.prod(spec.shape)
        header[name] = {"dtype": _DTYPES[spec.dtype.name], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    if len(text) > _MAX_HEADER:
        raise ValueError(
            f"safetensors cannot hold the names of {count(len(header), 'tensor')}: {count(len(text), 'byte')}"
        )
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in ordered:
        array = tensors.read(name)
        stream.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)
        advance(array.nbytes)
