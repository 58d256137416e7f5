"""The same faults for everyone, as a table in docs/faults.md: `python -m tests.faults.rivals` writes it."""

from __future__ import annotations

from collections import Counter

import fastvar as fv
from tests.faults import lab
from tests.faults.formats import CAREFUL, OURS, RIVALS

FAULTS = {  # what each is called in the table, and how many attempts where a number can be chosen
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

What is left of a saved model when something goes wrong: the same faults for fastvar and for what people use
instead. `make faults` makes this page; `tests/faults` holds the faults, and tests that fastvar keeps its promises.

Everyone saves three arrays (90 KB) over an older save of them, as its users do: straight to the path.
*+ `os.replace`* is the same by hand more careful: to a file beside, which then replaces the old one (what a kill
leaves of that file is not counted as debris).
fastvar saves by `CheckpointManager` (a new file beside the old), and by `Checkpoint.save(overwrite=True)`.

| Fault | What is done |
|---|---|
| kill -9 | before, amid and after every call on files of one save; then at 200 random instants |
| failing calls | every call of a save fails, alone or with all after it: no space, quota, I/O error and others |
| full disk | the disk is full after every 4 KB, with and without reserving room first; and RLIMIT_FSIZE |
| power loss | after each call, and after the save has returned: of what no fsync has followed, any part is lost |
| eight writers | eight processes save to one place, others load meanwhile |
| flipped bits | a random bit of a small file |
| truncation | a small file is cut at a random length |

Each cell: the attempts after which all was well (the old or the new values load, or an error tells of the
damage), of all attempts; then what was not well. **lost**: nothing loads. **wrong**: something loads without an
error that is not what was saved. **unreported**: the save reported success, and what it saved does not load.
**crashed**, **hung**: the process did. *debris*: files stay even after the next good save.

{table}

A flipped bit is harmless where nothing depends on it. safetensors renames by a system call that is not met here,
so that call does not fail. Power loss assumes what POSIX allows, not what one file system does: ext4 with its
defaults writes a file out before a rename over another becomes durable, which saves some who do not call fsync.

{versions}
"""


def cell(fault: str, format: str) -> str:
    """How often all was well, and what was not."""
    if format in {careful.name for careful in CAREFUL} and fault in {"flipped bits", "truncations"}:
        return "the same file"
    counts = Counter(lab.run(fault, format, FAULTS[fault][1])["counts"])
    beside = {kind: counts.pop(kind, 0) for kind in ("debris", "blocked")}
    bad = [f"{count} **{kind}**" for kind, count in sorted(counts.items()) if kind not in GOOD]
    bad += [f"{count} *{kind}*" for kind, count in beside.items() if count]
    return "<br>".join([f"{sum(counts[kind] for kind in GOOD)} of {counts.total()}", *bad])


def versions() -> str:
    """Who was measured."""
    from importlib.metadata import version

    names = ("torch", "safetensors", "numpy", "h5py", "keras")
    others = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Measured with fastvar {fv.__version__}, {others}."


def table() -> str:
    """A row for every format, a column for every fault."""
    lines = ["| | " + " | ".join(title for title, _ in FAULTS.values()) + " |", "|---" * (len(FAULTS) + 1) + "|"]
    for format in [*OURS, *RIVALS, *CAREFUL]:
        lines.append(f"| {format.name} | " + " | ".join(cell(fault, format.name) for fault in FAULTS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = TEXT.format(table=table(), versions=versions())
    lab.ROOT.joinpath("docs").mkdir(exist_ok=True)
    lab.ROOT.joinpath("docs", "faults.md").write_text(page, encoding="utf-8")
