"""Slots whose format in a file is another than here: refuse them, or convert them with `cast`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fastvar import formats
from fastvar.buffers import Array
from fastvar.checkpoint.foreign.source import HasSpec
from fastvar.formats import Codes
from fastvar.kernels.numpy_formats import decoded
from fastvar.optimizer.quantized import Slot, format_of, parts_of


class Differing(NamedTuple):
    """A slot whose format in the file is another than here."""

    slot: Slot
    here: list[str]  # names of its tensors here
    sources: list[str]  # and in the file
    text: str


def differing(
    slots: Mapping[str, Slot], source_of: Callable[[str], str | None], entries: Mapping[str, HasSpec]
) -> list[Differing]:
    """Return the slots whose formats differ. Both have the same shape."""
    found = []
    for name, slot in slots.items():
        source = source_of(name)
        if source is None:
            continue
        there, sources, shape = _in_file(source, entries)
        here = format_of(slot)
        if shape == slot.shape and there != here and {there, here} & {*formats.OF_SLOTS}:
            names = [name + suffix for suffix in parts_of(slot)]
            found.append(Differing(slot, names, sources, f"{name}: {here} here, {there} in the file"))
    return found


def _in_file(source: str, entries: Mapping[str, HasSpec]) -> tuple[str, list[str], tuple[int, ...] | None]:
    """Return the format of a slot in a file, the names of its tensors, and its shape; None if it is not there."""
    if source in entries:
        return entries[source].dtype.name, [source], entries[source].shape
    names = [f"{source}.codes", f"{source}.scales"]
    if not {*names} <= {*entries}:
        return "", [], None
    codes, scales = (entries[name] for name in names)
    size = int(np.prod(codes.shape, dtype=object))
    whole = codes.dtype == np.uint8 and scales.dtype == np.float32 and scales.shape == (formats.groups_of(size),)
    return "8bit", names, codes.shape if whole else None


def reading_of(one: Differing, read: Callable[[str], Array]) -> Callable[[], object]:
    """Read a slot. Return what will write it in the format that it has here, rounded to nearest."""
    arrays = [read(name) for name in one.sources]
    stored: Any = Codes(*arrays) if len(arrays) > 1 else arrays[0]
    return functools.partial(one.slot.__setitem__, ..., decoded(stored, np.float64))
