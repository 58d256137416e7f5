"""Tables and pictures of a run: Markdown, PNG, SVG, and one HTML page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.pictures import PICTURES
from bench.tasks import FIXED, IN_CACHE, LIMITS
from fastvar.benchmark.contenders import FASTVAR
from fastvar.benchmark.picture import write as write_picture
from fastvar.tables import count, duration, size

Record = dict[str, Any]
Grid = tuple[str, list[str], list[list[str]]]  # a title, headings and rows
LEVEL = 0.97  # of a rival's speed, where memory bounds both
NEAR = 0.9  # of the limit
STYLE = "body{font:15px sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
STYLE += "td,th{padding:.15em .6em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child"
STYLE += "{text-align:left}svg{max-width:100%;height:auto}div{overflow-x:auto}"


def of_limit(record: Record) -> float | None:
    """Return the larger of the limits in times of fastvar's time, or None if none was measured."""
    return max((record["ratios"][name] for name in LIMITS if name in record["ratios"]), default=None)


def verdict(record: Record) -> str:
    """Return whether fastvar is first, and how near it is to the limit, with a reason where it is not."""
    rivals = {name: x for name, x in record["ratios"].items() if name not in LIMITS}
    place, near = "", of_limit(record)
    if rivals:
        best = min(rivals, key=lambda name: rivals[name])
        place = "first" if rivals[best] >= 1 else f"behind {best}"
        if LEVEL <= rivals[best] < 1 and near is not None and near >= NEAR:
            place = f"level with {best}"
    return "; ".join(filter(None, [place, reason(record, near)]))


def reason(record: Record, near: float | None) -> str:
    """Return why a step is further from its limit than NEAR: what was measured in the same run explains it."""
    if near is None or near >= NEAR:
        return ""
    if record["contended"]:
        return f"{near:.2f} of the limit: another process takes turns"
    took, fixed, arithmetic = (record[key] for key in ("seconds", FIXED, IN_CACHE))
    bound = max(arithmetic, *(took[name] for name in LIMITS if name in took))
    share = fixed / took[FASTVAR]
    found = [f"{share:.0%} is the cost of {count(record['variables'], 'variable')}"] * (share >= 0.1)
    if bound == arithmetic:
        found.append(f"its arithmetic takes {arithmetic / took[FASTVAR]:.0%}")
    if fixed + bound < NEAR * took[FASTVAR]:
        found.append(f"{1 - (fixed + bound) / took[FASTVAR]:.0%} is unexplained")
    return f"{near:.2f} of the limit: {', '.join(found)}"


def step_table(records: Sequence[Record]) -> Grid:
    """Return the table of all steps."""
    chosen = [r for r in records if r["kind"] == "step"]
    others = list(dict.fromkeys(name for r in chosen for name in r["ratios"] if name not in LIMITS))
    heads = ["case", "fastvar", "GB/s", "of limit", *(f"x {name}" for name in others), "peak", "verdict"]
    rows = []
    for r in chosen:
        near = of_limit(r)
        cells = [f"{r['ratios'][name]:.3g}" if name in r["ratios"] else "-" for name in others]
        rate = f"{r['bytes'] / r['seconds'][FASTVAR] / 1e9:.3g}"
        peak = size(r["peak"][FASTVAR])
        limit = "-" if near is None else f"{near:.2f}"
        rows.append([r["id"], duration(r["seconds"][FASTVAR]), rate, limit, *cells, peak, verdict(r)])
    return "Steps (x: the time of the other in times of fastvar's)", heads, rows


def overhead_table(records: Sequence[Record]) -> Grid:
    """Return what a step, and each variable of 64 elements, costs each contender."""
    by_id = {r["id"]: r["seconds"] for r in records if r["kind"] == "step"}
    one, many = (by_id.get(f"adam-float32-{shape}-1thr", {}) for shape in ("1x64", "1000x64"))
    rows = [[n, duration(one[n]), duration(max(0, many[n] - one[n]) / 999)] for n in one if n in many]
    return "Overhead of Adam", ["contender", "one variable of 64", "each further one"], rows


def other_table(records: Sequence[Record], kind: str, title: str) -> Grid:
    """Return the table of another kind of task."""
    rows = []
    for r in (r for r in records if r["kind"] == kind and "seconds" in r):
        for name, seconds in r["seconds"].items():
            share = r.get("share of the optimizer", {}).get(name)
            ratio = "1" if name == FASTVAR else f"{r['ratios'][name]:.3g}"
            rows.append([r["id"], name, duration(seconds), ratio, "" if share is None else f"{share:.1%}"])
    return title, ["task", "", "time", "/ fastvar's", "in the optimizer"], rows


def summary(records: Sequence[Record]) -> list[str]:
    """Return the sentences above the tables."""
    chosen = [r for r in records if r["kind"] == "step" and "ratios" in r]
    first = [r for r in chosen if verdict(r).startswith("first")]
    behind = [f"{r['id']} ({verdict(r)})" for r in chosen if "behind" in verdict(r)]
    missing = sorted({name for r in chosen for name in r["absent"]})
    left = sorted({f"{name} in {r['id']}: {why}" for r in chosen for name, why in r["left out"].items()})
    failed = [f"{r['id']}: {r['failed']}" for r in records if "failed" in r]
    lines = [f"fastvar is first in {len(first)} of {count(len(chosen), 'step')}."] if chosen else []
    for text, items in (("Behind", behind), ("Not installed", missing), ("Left out", left), ("Failed", failed)):
        lines += [f"{text}: {', '.join(items)}."] if items else []
    return lines


def write(lines: Sequence[Record], folder: Path) -> int:
    """Write all files into a folder, and return the exit code."""
    machine = next((line["machine"] for line in lines if "machine" in line), {})
    records = [*{line["id"]: line for line in lines if "seconds" in line}.values()]
    if not records:
        print("there is nothing to report: python -m bench run")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    grids = [step_table(records), overhead_table(records)]
    for kind, title in (("formats", "Storage formats"), ("checkpoint", "Checkpoints"), ("job", "Whole jobs")):
        grids.append(other_table(records, kind, title))
    grids = [grid for grid in grids if grid[2]]
    failed = [{**line, "kind": ""} for line in lines if "failed" in line]
    said = [", ".join(f"{k} {v}" for k, v in machine.items()), *summary([*records, *failed])]
    drawn = {make.__name__: made for make in PICTURES if (made := make(records)) is not None}
    for name, made in drawn.items():
        write_picture(made, folder / f"{name}.png")
        write_picture(made, folder / f"{name}.svg")
    (folder / "report.md").write_text(markdown(said, grids, list(drawn)), encoding="utf-8")
    (folder / "report.html").write_text(page(said, grids, folder, list(drawn)), encoding="utf-8")
    print("\n".join(said))
    print(f"{folder}: report.md, report.html, {count(len(drawn), 'picture')} as .png and .svg")
    return 0


def markdown(said: Sequence[str], grids: Sequence[Grid], names: Sequence[str]) -> str:
    """Return the report as Markdown."""
    parts = ["# Benchmarks", *said, *(f"![{name}]({name}.svg)" for name in names)]
    for title, heads, rows in grids:
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def page(said: Sequence[str], grids: Sequence[Grid], folder: Path, names: Sequence[str]) -> str:
    """Return the report as one page of HTML with the pictures in it."""
    parts = [f"<p>{html.escape(line)}</p>" for line in said]
    for name in names:
        drawn = (folder / f"{name}.svg").read_text(encoding="utf-8")
        parts.append(drawn[drawn.index("<svg") :])
    for title, heads, rows in grids:
        body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
        parts.append(f"<h2>{html.escape(title)}</h2><div><table><tr>{cells('th', heads)}</tr>{body}</table></div>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}<title>fastvar: benchmarks</title></head><body>" + (
        f"<h1>Benchmarks</h1>{''.join(parts)}</body></html>\n"
    )


def cells(tag: str, texts: Sequence[str]) -> str:
    """Return the cells of a row."""
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
