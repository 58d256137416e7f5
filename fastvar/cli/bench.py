"""The command that measures steps on this machine: bench."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from fastvar import tables, threads
from fastvar.benchmark import cases, contenders, picture, quick
from fastvar.checkpoint.progress import progress
from fastvar.cli import screen
from fastvar.cli.ending import FINE
from fastvar.cli.files import Add


def add_to(add: Add) -> None:
    """Add the command to a parser."""
    command = add("bench", _bench, "measure steps on this machine beside the libraries that are installed")
    command.add_argument(
        "--rules", nargs="+", metavar="RULE", choices=cases.RULES, default=["adam"], help="such as adam sgd lion"
    )
    command.add_argument(
        "--rivals", nargs="+", metavar="NAME", choices=contenders.NAMES[1:], default=quick.COMMON[1:],
        help=f"default: those that are installed of {', '.join(quick.COMMON[1:])}",
    )  # fmt: skip
    command.add_argument("--threads", type=_positive, default=1, metavar="N", help="default: 1")
    command.add_argument(
        "--seconds", type=_seconds, default=60.0, metavar="S", help="about how long, by default 60"
    )
    command.add_argument("--picture", metavar="FILE", help="draw the times into this .png or .svg")
    command.add_argument("--json", action="store_true", help="print JSON")


def _positive(text: str) -> int:
    if not 1 <= int(text) <= threads.usable():
        raise argparse.ArgumentTypeError(f"must be from 1 to {threads.usable()}, got {text}")
    return int(text)


def _seconds(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


def _bench(given: argparse.Namespace) -> int:
    if given.picture:
        picture.figure()  # says at once if matplotlib is missing
    names = (contenders.FASTVAR, *given.rivals)
    wanted = quick.cases(given.rules, given.threads)
    rows = []
    with contenders.processors(given.threads), progress("measuring", len(wanted), "case", least=1) as advance:
        for row in quick.measured(wanted, names, given.seconds):
            rows.append(row)
            advance(1)
    missing = contenders.absent(names)
    failed = {name: why for row in rows for name, why in row.failed.items()}
    if given.json:
        screen.write_json({"steps": [_as_json(row) for row in rows], "not installed": missing, "failed": failed})
    else:
        _show(rows, missing, failed)
    if given.picture:
        quick.draw(rows, given.picture)
        if not given.json:
            screen.say(f"{given.picture}: written")
    return FINE


def _as_json(row: quick.Row) -> dict[str, Any]:
    rate = row.case.bytes / row.seconds / 1e9
    return {"case": str(row.case), "seconds": row.seconds, "GB/s": rate, "times as long": row.ratios}


def _show(rows: list[quick.Row], missing: dict[str, str], failed: dict[str, str]) -> None:
    others = list(dict.fromkeys(itertools.chain.from_iterable(row.ratios for row in rows)))
    titles = ["case", ">fastvar", ">GB/s", *(f">x {name}" for name in others)]
    body = []
    for row in rows:
        ratios = [f"{row.ratios[name]:.3g}" if name in row.ratios else "" for name in others]
        rate = row.case.bytes / row.seconds / 1e9
        body.append([str(row.case), tables.duration(row.seconds), f"{rate:.3g}", *ratios])
    screen.table(titles, body)
    screen.say(f"{picture.processor()}; x: the time of a step in times of fastvar's, a median of rounds in turn")
    if missing:
        screen.say(f"not installed: {', '.join(missing)}")
    for name, why in failed.items():
        screen.say(f"{name} failed: {why}")
