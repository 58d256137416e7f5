"""The memory of an optimizer: what it takes now, and with each `slot_dtype`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fastvar import formats
from fastvar.masters import arrays_of
from fastvar.optimizer.quantized import Slot
from fastvar.optimizer.rule import Rule
from fastvar.optimizer.slots import slot_format, stored_slots
from fastvar.optimizer.state import State
from fastvar.place import Place
from fastvar.tables import Table, count, size

CHOICES = (None, *formats.OF_SLOTS)


def memory(rule: Rule, state: State) -> Table:
    """Return a table of bytes: of the variables and of each slot, now and with each `slot_dtype`."""
    group_of = {id(v): group for group in state.groups for v in group.variables}
    weights = [arrays_of(v.memory) for v in state.variables]
    rows: list[list[Any]] = [_constant("variables", sum(arrays[0].nbytes for arrays in weights))]
    if masters := sum(array.nbytes for arrays in weights for array in arrays[1:]):
        rows.append(_constant("masters", masters))
    for name, slots in state.slots.items():
        kept = [(v, slot) for v, slot in zip(state.variables, slots, strict=True) if slot is not None]
        now = sum(slot.nbytes for _, slot in kept)
        rows.append([name, now, *(sum(_bytes(rule, name, v, s, group_of, c) for v, s in kept) for c in CHOICES)])
    totals = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    elements = max(sum(v.size for v in state.variables), 1)
    rows += [["total", *totals], ["bytes per parameter", *(round(total / elements, 2) for total in totals)]]
    now = f"{size(totals[0])} now; gradients are the caller's"
    footer = "\n".join([now, *_small(state), *_exact(rule, state)])
    columns = ("", "now", *(f"slot_dtype={choice!r}" for choice in CHOICES))
    return Table(f"{rule._owner}: bytes", columns, rows, footer)


def _small(state: State) -> list[str]:
    """Return a line about variables that are too small for a `slot_dtype`, or none."""
    sizes = [(v.size, group.slot_dtype_min_size) for group in state.groups for v in group.variables if state.slots]
    small = [least for size, least in sizes if size < least]
    limit = f"slot_dtype_min_size={', '.join(map(str, sorted(set(small))))}"
    line = f"too small for slot_dtype: {len(small):,} of {count(len(sizes), 'variable')} ({limit})"
    return [line] if small else []


def _exact(rule: Rule, state: State) -> list[str]:
    """Return a line about slots that stay as they are in every variable, or none."""
    kinds = {rule.kind_of(v) for v in state.variables}
    exact = [name for name in state.slots if not any(name in stored_slots(rule, kind) for kind in kinds)]
    return [f"exact with every slot_dtype: {', '.join(exact)}"] if exact else []


def _constant(name: str, nbytes: int) -> list[Any]:
    """Return the row of bytes that `slot_dtype` does not change."""
    return [name, nbytes, *[nbytes] * len(CHOICES)]


def _bytes(
    rule: Rule, name: str, variable: Place, slot: Slot, group_of: dict[int, Any], choice: str | None
) -> int:
    """Return the bytes of a slot with a `slot_dtype`."""
    least = group_of[id(variable)].slot_dtype_min_size
    wanted = slot_format(rule, name, variable, SimpleNamespace(slot_dtype=choice, slot_dtype_min_size=least))
    if wanted == "8bit":
        return slot.size + 4 * formats.groups_of(slot.size)
    return slot.size * (2 if wanted == "bfloat16" else np.dtype(wanted).itemsize)
