"""What fastvar itself notes of a save: time, metrics and part files in the state of the file, pins beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_PREFIX = "$"  # the first character of keywords that are not the program's
_NOTES = f"{_PREFIX}manager"
PARTS = f"{_PREFIX}parts"  # in the commit file of a set: its part files
PART = f"{_PREFIX}part"  # in a part file: what it holds
ORDER = f"{_PREFIX}order"  # of many ranks: how they add up gradients
PIN = ".pin"  # the suffix of the empty file that pins a checkpoint


class Notes(NamedTuple):
    """The time of a save, in seconds since 1970, and the metrics given to `save`."""

    time: float
    metrics: dict[str, Any]


def is_reserved(keyword: str) -> bool:
    """Whether a keyword of state is fastvar's own and not the program's."""
    return keyword.startswith(_PREFIX)


def add_notes(state: dict[str, Any], metrics: Mapping[str, float]) -> None:
    """Note the time and the metrics of a save in its state."""
    state[_NOTES] = {"time": time.time(), "metrics": {**metrics}}


def read_notes(state: Mapping[str, Any], modified: float) -> Notes:
    """Return the notes in a state, which need not be a manager's; without a time, that of the file."""
    notes = state.get(_NOTES)
    if not isinstance(notes, dict):
        return Notes(modified, {})
    saved, metrics = notes.get("time"), notes.get("metrics")
    if type(saved) is not float or not math.isfinite(saved):
        saved = modified
    return Notes(saved, metrics if isinstance(metrics, dict) else {})
