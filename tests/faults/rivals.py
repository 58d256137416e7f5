"""Put all formats to the same faults, and write docs/faults.md: `python -m tests.faults.rivals`."""

from __future__ import annotations

from collections import Counter

import fastvar as fv
from tests.faults import lab
from tests.faults.formats import CAREFUL, OURS, RIVALS

FAULTS = {  # the names in the table, and the number of attempts if it can be chosen
    "kills": ("kill -9", 200),
    "failing calls": ("failing calls", 0),
    "full disk": ("full disk", 0),
    "power loss": ("power loss", 400),
    "writers": ("eight writers", 4),
    "flipped bits": ("flipped bits", 3000),
    "truncations": ("truncation", 1000),
}
GOOD = ("old", "new", "told", "unharmed")
TEXT = """\
# Faults

What is left of a saved model when something goes wrong? This page puts fastvar and the usual alternatives to the
same faults. `make faults` writes it. `tests/faults` contains the faults, and tests that fastvar keeps its
promises.

Each library saves three arrays (90 KB) over an older save, as its users do: directly to the path. With *+
`os.replace`*, it saves to a temporary file, which then replaces the old one. (If a kill leaves that file, it
does not count as debris.) fastvar saves with `CheckpointManager` (a new file beside the old one), and with
`Checkpoint.save(overwrite=True)`.

| Fault | What happens |
|---|---|
| kill -9 | before, during and after every call on files in a save, and at 200 random instants |
| failing calls | each call of a save fails, alone or with all later ones: no space, quota, I/O error and others |
| full disk | the disk is full after every 4 KB, with and without reserving space first; or RLIMIT_FSIZE |
| power loss | after each call, and after the save has returned: any part of the data without an fsync is lost |
| eight writers | eight processes save to one path while others load |
| flipped bits | a random bit of a small file |
| truncation | a small file is cut at a random length |

Each cell shows the number of good outcomes (the old or the new values load, or an error reports the damage) of
all attempts, and then the bad ones. **lost**: nothing loads. **wrong**: other values than the saved ones load,
without an error. **unreported**: the save reported success, but its values do not load. **crashed**, **hung**:
the process did. *debris*: files stay even after the next good save.

{table}

A flipped bit is harmless if nothing depends on it. safetensors renames with a system call that faulty.c cannot
catch, so that call does not fail. Power loss is what POSIX allows, not what one file system does: by default,
ext4 writes a file before a rename over another becomes durable, which helps programs that do not call fsync.

{versions}
"""


def cell(fault: str, format: str) -> str:
    """Return the number of good outcomes, and the bad ones."""
    if format in {careful.name for careful in CAREFUL} and fault in {"flipped bits", "truncations"}:
        return "the same file"
    counts = Counter(lab.run(fault, format, FAULTS[fault][1])["counts"])
    beside = {kind: counts.pop(kind, 0) for kind in ("debris", "blocked")}
    bad = [f"{count} **{kind}**" for kind, count in sorted(counts.items()) if kind not in GOOD]
    bad += [f"{count} *{kind}*" for kind, count in beside.items() if count]
    return "<br>".join([f"{sum(counts[kind] for kind in GOOD)} of {counts.total()}", *bad])


def versions() -> str:
    """Return the versions of the libraries."""
    from importlib.metadata import version

    names = ("torch", "safetensors", "numpy", "h5py", "keras")
    others = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Measured with fastvar {fv.__version__}, {others}."


def table() -> str:
    """Return the table, with a row for each format and a column for each fault."""
    lines = ["| | " + " | ".join(title for title, _ in FAULTS.values()) + " |", "|---" * (len(FAULTS) + 1) + "|"]
    for format in [*OURS, *RIVALS, *CAREFUL]:
        lines.append(f"| {format.name} | " + " | ".join(cell(fault, format.name) for fault in FAULTS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = TEXT.format(table=table(), versions=versions())
    lab.ROOT.joinpath("docs").mkdir(exist_ok=True)
    lab.ROOT.joinpath("docs", "faults.md").write_text(page, encoding="utf-8")
