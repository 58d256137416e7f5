"""The benchmark suite: `python -m bench run | report | compare | smoke`; `--help` says more."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench import compare, run
from bench.suite import SETS, Task, smoke

RESULTS = run.ROOT / "runs" / "bench.jsonl"
RATIOS = Path(__file__).parent / "ratios.json"
SMOKE_MARGIN = 0.5  # processors differ, and CI is noisy: only what halves is found


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = whole.add_subparsers(required=True, dest="command")
    one = commands.add_parser("run", help="measure; what FILE has is skipped")
    size = one.add_mutually_exclusive_group()
    size.add_argument("--smoke", dest="which", action="store_const", const="smoke", help="four steps")
    size.add_argument("--all", dest="which", action="store_const", const="all", help="every combination: days")
    one.add_argument("--only", default="", metavar="TEXT", help="only tasks with this in their names")
    one.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS}")
    one.add_argument("--enough", type=float, default=4.0, metavar="S", help="seconds for a task, by default 4")
    one = commands.add_parser("work", help="what `run` starts for each number of threads")
    one.add_argument("which", choices=SETS)
    one.add_argument("--only", default="")
    one.add_argument("--json", type=Path, required=True)
    one.add_argument("--threads", type=int, required=True)
    one.add_argument("--enough", type=float, required=True)
    one = commands.add_parser("report", help="write tables and pictures of a run")
    one.add_argument("json", type=Path, nargs="?", default=RESULTS, metavar="FILE")
    one.add_argument("--to", type=Path, metavar="FOLDER", help="default: beside FILE")
    one = commands.add_parser("compare", help="exit with 1 if a task has become slower in B, by ratios")
    one.add_argument("before", type=Path, metavar="A")
    one.add_argument("after", type=Path, metavar="B")
    one.add_argument("--margin", type=float, default=compare.MARGIN, help="by default 0.1")
    one = commands.add_parser("smoke", help=f"compare a minute of measurements with {RATIOS.name}")
    one.add_argument("--write", action="store_true", help=f"write {RATIOS.name} anew")
    return whole


def main(arguments: list[str]) -> int:
    """Run a command, and return its exit code."""
    given = parser().parse_args(arguments)
    if given.command == "run":
        return run.run(given.which or "standard", given.only, given.json, given.enough)
    if given.command == "work":
        run.work(given.which, given.only, given.json, given.threads, given.enough)
        return 0
    if given.command == "report":
        from bench import report

        return report.write(run.read(given.json), given.to or given.json.with_suffix(""))
    if given.command == "compare":
        before, after = (compare.ratios(run.read(path)) for path in (given.before, given.after))
        found = compare.changes(before, after)
        print(compare.table(found, given.margin))
        return 1 if compare.fallen(found, given.margin) or not found else 0
    return smoked(given.write)


def smoked(write: bool) -> int:
    """Measure the smoke size; what has fallen is measured once more."""
    if write:
        RATIOS.write_text(json.dumps(ratios(smoke()), indent=1) + "\n")
        return 0
    before = json.loads(RATIOS.read_text())
    found = compare.changes(before, ratios(smoke()))
    again = {change.id for change in compare.fallen(found, SMOKE_MARGIN)}
    if again:
        print(f"once more: {', '.join(sorted(again))}")
        second = compare.changes(before, ratios([task for task in smoke() if task.id in again]))
        found = [*second, *(change for change in found if change.id not in again)]
    print(compare.table(found, SMOKE_MARGIN))
    return 1 if compare.fallen(found, SMOKE_MARGIN) or len(found) < len(before) else 0


def ratios(tasks: list[Task]) -> dict[str, dict[str, float]]:
    """Measure tasks, and return their ratios to rivals with three digits."""
    from bench.tasks import LIMITS, measured

    found = compare.ratios([measured(task, 2.0) for task in tasks])
    return {
        name: {who: float(f"{value:.3g}") for who, value in row.items() if who not in LIMITS}
        for name, row in found.items()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
