"""Reading of one checkpoint by all ranks: each reads some of it, once, and sends the others what they need.

Hashes are of whole pieces of tensors, so a rank reads whole pieces, in rounds: it reads a limited number of bytes,
and all ranks exchange what they have read. Thus no rank needs memory for more than a round and its own needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import xxhash

from fastvar import buffers
from fastvar.buffers import Array
from fastvar.checkpoint.file_format import CheckpointError
from fastvar.checkpoint.part_list import Piece
from fastvar.checkpoint.sets import CheckpointFile, raise_any
from fastvar.distributed.exchange import Parcel
from fastvar.distributed.world import World

ROUND = 1 << 26  # bytes that a rank reads before it sends them
Ranges = dict[str, tuple[int, int]]  # by tensor: the first element, and the one after the last


class Segment(NamedTuple):
    """Bytes of a piece that are read at once, from `start` to before `stop` in the tensor."""

    name: str
    piece: Piece
    width: int  # bytes of an element
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class Need(NamedTuple):
    """A rank needs the bytes of a tensor from `start` to before `stop`."""

    rank: int
    start: int
    stop: int


Rounds = list[list[Segment]]


class Reading:
    """Reads parts of tensors on all ranks.

    Parameters
    ----------
    world : World
        The ranks. All must make the same calls.
    file : CheckpointFile
        The checkpoint, opened on each rank.
    """

    def __init__(self, world: World, file: CheckpointFile) -> None:
        self._world, self._file = world, file
        self._buffer: Array = np.empty(0, np.uint8)
        self._digest = xxhash.xxh3_128()  # of the piece that is being read
        self._damaged: dict[int, list[str]] = {}  # by part
        self._unreadable: dict[int, CheckpointError] = {}

    def fetch(self, needs: Ranges) -> dict[str, Array]:
        """Return flat arrays of the elements that this rank needs. Call `check` before they are used.

        Raises
        ------
        CheckpointError
            On all ranks, if they have not opened the same file.
        """
        file = self._file
        said = self._world.agree("restore: what ranks need", root=file.record.root, needs=needs)
        for rank, one in enumerate(said):
            if one["root"] != said[0]["root"]:
                raise CheckpointError(f"{file.path}: rank {rank} and rank 0 have opened different files")
        needed: dict[str, list[Need]] = {}
        for rank, one in enumerate(said):
            for name, (start, stop) in one["needs"].items():
                width = file.entries[name].dtype.itemsize
                needed.setdefault(name, []).append(Need(rank, start * width, stop * width))
        pieces = [(n, piece, file.entries[n].dtype.itemsize) for n in sorted(needed) for piece in file.pieces(n)]
        plan = rounds_of(pieces, self._world.size)
        data = {n: buffers.empty((stop - start,), file.entries[n].dtype) for n, (start, stop) in needs.items()}
        mine = {n: (needs[n][0] * array.itemsize, array.view(np.uint8)) for n, array in data.items()}
        for k in range(max(map(len, plan))):
            self._round([rounds[k] if k < len(rounds) else [] for rounds in plan], needed, mine)
        self._buffer = np.empty(0, np.uint8)
        return data

    def _round(
        self,
        segments: Sequence[Sequence[Segment]],
        needed: Mapping[str, Sequence[Need]],
        mine: Mapping[str, tuple[int, Array]],
    ) -> None:
        """Read my segments, and exchange those of all ranks. `mine` is where my needs begin, and their bytes."""
        me, size = self._world.rank, self._world.size
        sent: list[list[Array]] = [[] for _ in range(size)]
        received: list[list[Array]] = [[] for _ in range(size)]
        own = {name: [Need(me, first, first + flat.size)] for name, (first, flat) in mine.items()}
        here = self._read(segments[me])
        for reader, of_reader in enumerate(segments):
            for at, segment in enumerate(of_reader):
                for rank, start, stop in (needed if reader == me else own).get(segment.name, ()):
                    low, high = max(start, segment.start), min(stop, segment.stop)
                    if low >= high:
                        continue
                    if reader == me:
                        sent[rank].append(here[at][low - segment.start : high - segment.start])
                    if rank == me:
                        first, flat = mine[segment.name]
                        received[reader].append(flat[low - first : high - first])
        for target, source in zip(received[me], sent[me], strict=True):
            target[...] = source
        going, coming = (
            {rank: Parcel(arrays) for rank, arrays in enumerate(of_ranks) if arrays and rank != me}
            for of_ranks in (sent, received)
        )
        for parcel in going.values():
            parcel.load()
        self._world.meeting.exchange(
            {rank: parcel.arrays for rank, parcel in going.items()},
            {rank: parcel.arrays for rank, parcel in coming.items()},
            "the bytes of a checkpoint",
        )
        for parcel in coming.values():
            parcel.unload()

    def _read(self, segments: Sequence[Segment]) -> list[Array]:
        """Return the bytes of segments of this rank, in memory that the next call uses again."""
        total = sum(segment.nbytes for segment in segments)
        if self._buffer.size < total:
            self._buffer = buffers.empty((total,), np.uint8)
        found, used = [], 0
        for segment in segments:
            found.append(self._buffer[used : used + segment.nbytes])
            used += segment.nbytes
            self._read_segment(segment, found[-1])
        return found

    def _read_segment(self, segment: Segment, target: Array) -> None:
        """Read a segment, and with the last one of a piece verify it. Errors are for `check`."""
        name, (part, start, stop), width, begin, end = segment
        if part in self._unreadable:
            return
        if begin == start * width:
            self._digest = xxhash.xxh3_128()
        try:
            file = self._file.holder(part)
            file.read_stretch(name, begin - start * width, target.data, self._digest)
        except CheckpointError as error:
            self._unreadable[part] = error
        except FileNotFoundError as error:  # removed since it was opened
            self._unreadable[part] = CheckpointError(f"{self._file.path}: {error.strerror}", errno=error.errno)
        else:
            if end == stop * width and self._digest.hexdigest() != file.entries[name].hash:
                self._damaged.setdefault(part, []).append(name)

    def check(self) -> None:
        """Raise one CheckpointError for all that this rank could not read, and all that is damaged."""
        damaged = [self._file.holder(part).damaged(names) for part, names in self._damaged.items()]
        raise_any([*self._unreadable.values(), *damaged], self._file.entries)


def rounds_of(pieces: Iterable[tuple[str, Piece, int]], ranks: int) -> list[Rounds]:
    """Return for each rank the rounds in which it reads its pieces: about as many bytes as others.

    Parameters
    ----------
    pieces : iterable of (str, Piece, int)
        The name of a tensor, a piece of it, and the bytes of an element.
    ranks : int
        The number of ranks.
    """
    ordered = sorted(pieces, key=lambda one: one[1].part)  # a rank should open few files
    total = sum((piece.stop - piece.start) * width for _, piece, width in ordered)
    plan: list[Rounds] = [[] for _ in range(ranks)]
    room = [0] * ranks
    before = 0
    for name, piece, width in ordered:
        first, last = piece.start * width, piece.stop * width
        rank = (2 * before + last - first) * ranks // (2 * total)
        before += last - first
        for start in range(first, last, ROUND):
            segment = Segment(name, piece, width, start, min(start + ROUND, last))
            if segment.nbytes > room[rank]:
                plan[rank].append([])
                room[rank] = ROUND
            plan[rank][-1].append(segment)
            room[rank] -= segment.nbytes
    return plan
