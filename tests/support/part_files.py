"""Sets of part files, for tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastvar.buffers import Array
from fastvar.checkpoint import parts
from fastvar.checkpoint.file_format import Saved
from fastvar.checkpoint.locks import Lock
from fastvar.checkpoint.parts import PartRecord, Slice

Cuts = Mapping[str, Sequence[int]]  # by tensor: where each part but the first begins
Each = Callable[[PartRecord], PartRecord]


def evenly(tensors: Mapping[str, Array], count: int) -> dict[str, list[int]]:
    """Cut each tensor into parts of about equal size."""
    return {name: [k * array.size // count for k in range(1, count)] for name, array in tensors.items()}


def slices(tensors: Mapping[str, Array], cuts: Cuts, index: int) -> dict[str, Slice]:
    """Return what a part holds."""
    held = {}
    for name, array in tensors.items():
        start, stop = [*itertools.pairwise([0, *cuts[name], array.size])][index]
        if stop > start:
            held[name] = Slice(array.shape, start, array.reshape(-1)[start:stop])
    return held


def write_parts(path: str | Path, tensors: Mapping[str, Array], cuts: Cuts, step: int = 1) -> list[PartRecord]:
    """Write the parts of a new set, as so many processes would."""
    set_id, count = parts.new_set(), 1 + len(next(iter(cuts.values())))
    return [
        parts.write_part(path, set_id, k + 1, count, slices(tensors, cuts, k), step=step) for k in range(count)
    ]


def save_set(
    path: Path,
    tensors: Mapping[str, Array],
    cuts: Cuts | int,
    state: Mapping[str, Any] | None = None,
    own: Mapping[str, Array] | None = None,
    *,
    step: int = 1,
    replace: bool = False,
    saved: Saved | None = None,
    change: Each = dict,
) -> list[PartRecord]:
    """Write a set, with `own` tensors in the commit file. Return what is known of its parts."""
    lock = Lock(os.path.join(os.path.dirname(path), ".fastvar-test.lock"))
    lock.acquire()
    records = write_parts(path, tensors, evenly(tensors, cuts) if isinstance(cuts, int) else cuts, step)
    options: dict[str, Any] = {"step": step, "replace": replace, "saved": saved}
    parts.publish(path, [change(one) for one in records], own or {}, state or {}, lock=lock, **options)
    lock.release()
    return records


def example(seed: int = 0) -> dict[str, Array]:
    """Return tensors of some dtypes and shapes."""
    rng = np.random.default_rng(seed)
    return {
        "variables/kernel": rng.standard_normal((30, 7), np.float32),
        "variables/bias": rng.standard_normal(11),
        "variables/counts": rng.integers(0, 9, (2, 3, 4)),
    }
