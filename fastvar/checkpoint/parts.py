"""Sets of part files: several processes write one checkpoint, each its own file. Nothing here knows of MPI.

A part is a whole and durable checkpoint file. It holds pieces of tensors: ranges of their elements in C order, as
arrays of one dimension. The commit file, published last, alone makes the set exist. It has everything else, the
root hashes of the parts, and each tensor in parts as a virtual dataset, so that h5py reads it through this file.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fastvar.buffers import Array
from fastvar.checkpoint import publishing
from fastvar.checkpoint.bookkeeping import PART, PARTS
from fastvar.checkpoint.file_format import Saved, check_names, failing
from fastvar.checkpoint.locks import Lock
from fastvar.checkpoint.part_list import PartList, beside, check_parts, part_name, remove_debris
from fastvar.checkpoint.virtual import Source, Virtual
from fastvar.checkpoint.writer import prepare

PartRecord = dict[str, Any]  # what a process tells of the part that it has written; JSON


class Slice(NamedTuple):
    """Some elements of a tensor, one after the other in C order.

    Attributes
    ----------
    shape : tuple of int
        That of the whole tensor.
    start : int
        The index of the first element.
    elements : ndarray
        C-contiguous, with at least one element; its own shape does not matter.
    """

    shape: tuple[int, ...]
    start: int
    elements: Array


def new_set() -> str:
    """Return the id of a new set, which its parts and its commit file share."""
    return secrets.token_hex(8)


def prepare_part(
    path: str | os.PathLike[str],
    set_id: str,
    number: int,
    count: int,
    slices: Mapping[str, Slice],
    *,
    step: int,
    saved: Saved | None = None,
) -> Callable[[], PartRecord]:
    """Check the arguments of `write_part`. Return a function that writes the present values of the arrays."""
    path = publishing.absolute(path)
    if not 1 <= number <= count:
        raise ValueError(f"write_part: number must be from 1 to count={count}, got {number}")
    arrays, pieces = {}, {}
    for name, (shape, start, elements) in slices.items():
        if not 0 <= start < start + elements.size <= math.prod(shape):
            raise ValueError(
                f"tensor {name!r}: the elements must be within its shape {shape}, got {elements.size} from {start}"
            )
        if not elements.flags.c_contiguous:
            raise ValueError(f"tensor {name!r}: must be C-contiguous")
        arrays[name] = elements.reshape(-1)
        pieces[name] = [elements.dtype.name, [*shape], start, start + elements.size]
    file = part_name(path, set_id, number, count)
    note = {"set": set_id, "number": number, "count": count, "tensors": pieces}
    # On a system whose locks hold for one machine only, cleaning would remove what others are writing.
    write = prepare(beside(path, file), arrays, {PART: note}, step=step, saved=saved, clean=False)

    def write_now() -> PartRecord:
        record = write()
        return {"file": file, "root": record.root, "length": record.length, **note}

    return write_now


def write_part(
    path: str | os.PathLike[str],
    set_id: str,
    number: int,
    count: int,
    slices: Mapping[str, Slice],
    *,
    step: int,
    saved: Saved | None = None,
) -> PartRecord:
    """Write a part file of a set; on return it is durable. Return what `publish` must know of it.

    Parameters
    ----------
    path : str or path-like
        The path that the commit file will have. The part file gets a name of its own in the same folder.
    set_id : str
        That of `new_set`, the same for all parts.
    number, count : int
        Which part this is, from 1, and how many there are.
    slices : mapping of str to Slice
        What the part holds, by the names of the tensors.
    step, saved
        As for `writer.write`.

    Raises
    ------
    CheckpointError
        If the system refuses anything. Then nothing is left.
    ValueError, TypeError
        For names or arrays that cannot be stored.
    """
    return prepare_part(path, set_id, number, count, slices, step=step, saved=saved)()


def publish(
    path: str | os.PathLike[str],
    records: Sequence[PartRecord],
    tensors: Mapping[str, Array],
    state: Mapping[str, Any],
    *,
    step: int,
    lock: Lock,
    replace: bool = False,
    saved: Saved | None = None,
) -> str:
    """Write the commit file of a set, which makes it exist, and return its absolute path. It is durable then.

    Parameters
    ----------
    path : str or path-like
        The commit file.
    records : sequence of dict
        What `write_part` returned for all parts, in any order.
    tensors : mapping of str to arrays
        Those that no part holds, empty ones among them.
    state, step, replace, saved
        As for `writer.write`.
    lock : Lock
        That of the folder, held since before the first part was written.

    Raises
    ------
    ValueError
        If parts are missing, or elements are in none or in two of them.
    CheckpointError
        If a part file is not the one that was written, or the commit file cannot be written. The parts stay;
        `remove_debris` removes them.
    """
    path = publishing.absolute(path)
    if not lock.held:
        raise ValueError("publish: hold the lock of the folder from before the first part is written")
    try:
        parts = PartList(_joined(path, records))
    except ValueError as error:
        raise ValueError(f"{path}: not saved: {error}") from error
    if both := tensors.keys() & parts.tensors.keys():
        raise ValueError(f"{path}: not saved: tensor {min(both)!r} is in a part, too")
    check_names([*tensors, *parts.tensors])
    with failing(path):
        check_parts(path, parts)
    names = [file.name for file in parts.files]
    elsewhere = [
        Virtual(name, one.dtype, one.shape, [Source(names[k], start, stop) for k, start, stop in one.pieces])
        for name, one in parts.tensors.items()
    ]
    state = {**state, PARTS: parts.as_json}
    prepare(path, tensors, state, step=step, replace=replace, saved=saved, elsewhere=elsewhere)()
    if replace:
        remove_debris(os.path.dirname(path), os.path.basename(path).__eq__)
    return path


def _joined(path: str, records: Iterable[PartRecord]) -> dict[str, Any]:
    """Return the list of parts that these records make, for `PartList` to check."""
    ordered = sorted(records, key=lambda record: record["number"])
    if not ordered:
        raise ValueError("there are no parts")
    set_id, count = ordered[0]["set"], ordered[0]["count"]
    if [record["number"] for record in ordered] != [*range(1, count + 1)]:
        raise ValueError(f"it needs the parts 1 to {count}, got {[record['number'] for record in ordered]}")
    tensors: dict[str, list[Any]] = {}
    for index, record in enumerate(ordered):
        wanted = set_id, part_name(path, set_id, index + 1, count)
        if (record["set"], record["file"]) != wanted:
            raise ValueError(f"{record['file']} is not a part of the set {set_id} of {count}")
        for name, (kind, shape, start, stop) in record["tensors"].items():
            entry = tensors.setdefault(name, [kind, shape, []])
            if entry[:2] != [kind, shape]:
                one, other = f"{entry[0]}{entry[1]}", f"{kind}{shape}"
                raise ValueError(f"tensor {name!r} is {one} in one part, and {other} in another")
            entry[2].append([index, start, stop])
    for entry in tensors.values():
        entry[2].sort(key=lambda piece: piece[1:])
    files = [[record["file"], record["root"], record["length"]] for record in ordered]
    return {"set": set_id, "files": files, "tensors": tensors}
