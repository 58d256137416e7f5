"""A checkpoint as one rank sees it."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint.file_format import Entry
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.distributed.reading import Ranges


class Share(NamedTuple):
    """What a rank has of a tensor: elements from `start` on, in C order, of one of this shape."""

    start: int
    shape: tuple[int, ...]
    here: Array


class RankFile:
    """The tensors of a checkpoint for one rank: of what ranks share out, its own elements. They are in memory.

    Slots have the shapes of this rank's parts. Variables are whole, and zero where other ranks have elements.

    Parameters
    ----------
    file : CheckpointFile
        The checkpoint.
    shares : mapping of str to Share
        What this rank has, by names in the file.
    foreign : container of str
        Tensors of which only other ranks have something.

    Attributes
    ----------
    data : dict of str to ndarray
        Flat arrays of what has been read, by names in the file.

    Others are those of `File`.
    """

    def __init__(self, file: CheckpointFile, shares: Mapping[str, Share], foreign: Container[str]) -> None:
        self.path: str = file.path
        self.step: int = file.step
        self.state: dict[str, Any] = file.state
        self.entries: dict[str, Entry] = {n: entry for n, entry in file.entries.items() if n not in foreign}
        self.data: dict[str, Array] = {}
        self._shares = shares
        for name, (_, shape, here) in shares.items():
            entry = self.entries.get(name)
            if name.startswith("variables/"):
                continue
            if not here.size and (entry is None or entry.shape != here.shape):
                self.entries[name] = Entry(here.dtype, here.shape, None, 0, "")
            elif entry is not None and entry.shape == shape:
                self.entries[name] = entry._replace(shape=here.shape, length=here.nbytes)

    def ranges(self, names: Iterable[str]) -> Ranges:
        """Return what this rank needs of tensors with elements: its shares, and others as a whole."""
        found = {}
        for name in names:
            share = self._shares.get(name)
            start, size = (share.start, share.here.size) if share else (0, math.prod(self.entries[name].shape))
            if size:
                found[name] = start, start + size
        return found

    def read(self, name: str) -> Array:
        array = np.zeros(self.entries[name].shape, self.entries[name].dtype)
        self.read_into([(name, array)])
        return array

    def read_small(self, names: Sequence[str]) -> list[bytes]:
        return [self.read(name).tobytes() for name in names]

    def read_into(self, targets: Sequence[tuple[str, Array]]) -> None:
        for name, array in targets:
            if name in self.data:
                found = self.data[name]
                start = self._shares[name].start if name.startswith("variables/") and name in self._shares else 0
                array.reshape(-1)[start : start + found.size] = found

    def verify(self, names: Iterable[str]) -> None:
        """Do nothing: what is in memory has been verified."""
