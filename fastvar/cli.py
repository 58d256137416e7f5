"""The commands for checkpoint files: inspect, verify, diff and convert."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fastvar import checkpoint
from fastvar.checkpoint import conversion, differences, inspection

FINE, WRONG, TROUBLE = 0, 1, 2  # exit codes; WRONG: damaged or different


def add_to(commands: Any) -> None:
    """Add the commands to the subparsers of a parser."""
    add = commands.add_parser
    command = add("inspect", help="show what is in a checkpoint, or in a folder of them")
    command.add_argument("path", metavar="FILE|DIR", help="a file may also be any HDF5, .npz or safetensors")
    command.add_argument(
        "--values", action="store_true", help="for a file: show norm, minimum, maximum, non-finite numbers"
    )
    command.add_argument("--quick", action="store_true", help="for a folder: do not verify the bytes of tensors")
    _finish(command, _inspect)

    command = add("verify", help="read everything and compare checksums; exit with 1 if anything is damaged")
    command.add_argument("paths", metavar="FILE|DIR", nargs="+")
    _finish(command, _verify)

    command = add("diff", help="show what changed between two checkpoints; exit with 1 if anything did")
    command.add_argument("before", metavar="A")
    command.add_argument("after", metavar="B")
    command.add_argument("--plot", metavar="FILE.png", help="draw the relative change of each tensor")
    _finish(command, _diff)

    command = add(
        "convert", help="convert a checkpoint to .npz, .safetensors or plain HDF5, or one of these to a checkpoint"
    )
    command.add_argument("source", metavar="SOURCE")
    command.add_argument("target", metavar="TARGET", help=".h5 is plain HDF5 if SOURCE is a checkpoint")
    command.add_argument(
        "--to", choices=conversion.FORMATS, help="the format; by default that of the ending of TARGET"
    )
    command.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")
    command.add_argument("--opaque", metavar="DTYPE", help="the dtype of opaque bytes in SOURCE, such as bfloat16")
    command.set_defaults(run=_convert)


def _finish(command: argparse.ArgumentParser, run: Callable[[Any], int]) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run a command of this module and return the exit code. Errors are printed as one line."""
    try:
        code: int = given.run(given)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return TROUBLE
    except (ImportError, OSError, TypeError, ValueError) as error:
        damaged = isinstance(error, checkpoint.CheckpointError) and given.command != "diff"
        print(f"fastvar {given.command}: {_clean(_message(error))}", file=sys.stderr)
        return WRONG if damaged else TROUBLE
    except KeyboardInterrupt:
        return 130


def _inspect(given: argparse.Namespace) -> int:
    if os.path.isdir(given.path):
        return _inspect_folder(given)
    found = checkpoint.inspect(given.path, values=given.values)
    if given.json:
        return _print_json(dataclasses.asdict(found))
    console = _console()
    _say(console, f"{found.path}: {found.format}, {_size(found.size)}{', pinned' * found.pinned}")
    if found.run is not None:
        _say(console, f"step {found.step:,}, save {found.counter:,} of run {found.run[:8]}, {_time(found.time)}")
    if found.metrics:
        _say(console, f"metrics: {_metrics(found.metrics)}")
    columns = ["tensor", "dtype", "shape", "bytes"] + ["norm", "min", "max", "non-finite"] * given.values
    rows = []
    for tensor in found.tensors:
        row = [tensor.name, tensor.dtype, str(list(tensor.shape)), f"{tensor.bytes:,}"]
        if tensor.values is not None:
            norm, low, high, nonfinite = tensor.values
            row += [f"{norm:.4g}", f"{low:.4g}", f"{high:.4g}", f"{nonfinite:,}"]
        rows.append(row)
    _table(console, columns, rows, left=2)
    total = sum(tensor.bytes for tensor in found.tensors)
    _say(
        console,
        f"{len(rows):,} tensors, {sum(math.prod(t.shape) for t in found.tensors):,} numbers, {_size(total)}",
    )
    for keyword, value in found.state.items():
        text = json.dumps(value)
        _say(console, f"{keyword}: {text[:200]}{'...' * (len(text) > 200)}")
    for note in found.notes:
        _say(console, f"note: {note}")
    return FINE


def _inspect_folder(given: argparse.Namespace) -> int:
    listed = checkpoint.inspect_folder(given.path, quick=given.quick)
    code = WRONG if any(item.problem for item in listed) else FINE
    if given.json:
        return _print_json([dataclasses.asdict(item) for item in listed], code)
    console, rows = _console(), []
    for item in listed:
        name, found = os.path.basename(item.path), item.inspection
        numbers = ["", "", ""]
        if found is not None:
            numbers = [f"{found.step:,}", f"{found.counter:,}", _time(found.time)]
        problem = item.problem and item.problem.removeprefix(f"{item.path}: ")
        what = "whole" if problem is None and not given.quick else problem or "not verified"
        pinned = ", pinned" * (found is not None and found.pinned)
        rows.append([name, *numbers, _size(item.size), _metrics(found.metrics if found else {}), what + pinned])
    columns = ["checkpoint", "step", "save", "time", "size", "metrics", ""]
    _table(console, columns, rows)
    _say(console, f"{given.path}: {len(rows):,} checkpoints, {sum(bool(i.problem) for i in listed):,} damaged")
    return code


def _verify(given: argparse.Namespace) -> int:
    results: dict[str, str | None] = {}
    code = FINE
    for path in _files(given.paths):
        try:
            checkpoint.verify(path)
            results[path] = None
        except OSError as error:
            if path not in given.paths and not os.path.lexists(path):
                continue  # removed after its folder was listed
            results[path] = _message(error)
            code = max(code, WRONG if isinstance(error, checkpoint.CheckpointError) else TROUBLE)
        if not given.json:
            print(_clean(results[path] or f"{path}: whole"), flush=True)
    if given.json:
        _print_json([{"path": path, "problem": problem} for path, problem in results.items()])
    return code


def _files(paths: Iterable[str]) -> Iterable[str]:
    for path in paths:
        if os.path.isdir(path):
            found = inspection.checkpoints_in(path)
            if not found:
                raise ValueError(f"{path}: there is no checkpoint in this folder")
            yield from found
        else:
            yield path


def _diff(given: argparse.Namespace) -> int:
    found = checkpoint.diff(given.before, given.after)
    code = WRONG if found else FINE
    if given.plot:
        differences.plot(found, given.plot)
    if given.json:
        changes = [dataclasses.asdict(change) | {"relative": change.relative} for change in found.changed]
        return _print_json(dataclasses.asdict(found) | {"changed": changes}, code)
    console = _console()
    ranked = sorted(found.changed, key=lambda change: -change.relative)
    rows = [
        [c.name, f"{c.before:.4g}", f"{c.after:.4g}", f"{c.difference:.4g}", f"{c.relative:.2e}"] for c in ranked
    ]
    if rows:
        _table(console, ["changed", "norm before", "norm after", "difference", "relative"], rows)
    for what in ("added", "removed", "reshaped", "state"):
        for name in getattr(found, what):
            _say(console, f"{what}: {name}")
    _say(console, f"{len(found.changed):,} tensors changed, {len(found.equal):,} are equal")
    return code


def _convert(given: argparse.Namespace) -> int:
    options = {"to": given.to, "overwrite": given.overwrite, "opaque": given.opaque}
    notes = checkpoint.convert(given.source, given.target, **options)
    for note in notes:
        print(f"note: {_clean(note)}")
    print(_clean(f"{given.target}: written"))
    return FINE


def _console() -> Any:
    try:
        from rich.console import Console
    except ImportError:
        raise ImportError("tables need rich: pip install 'fastvar[cli]' (or use --json)") from None
    return Console(width=None if sys.stdout.isatty() else 10_000, highlight=False, markup=False, emoji=False)


def _table(console: Any, columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table with text aligned left and numbers aligned right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(columns):
        table.add_column(title, justify="right" if left <= index and title else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_clean(cell)) for cell in row))
    console.print(table)


def _say(console: Any, text: str) -> None:
    console.print(_clean(text), soft_wrap=True)


def _clean(text: str) -> str:
    """Escape characters that could control a terminal: names in files may hold any."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _message(error: BaseException) -> str:
    """Return the message of an error; leave out the number of a system error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return str(error)


def _print_json(value: Any, code: int = FINE) -> int:
    print(json.dumps(_plain(value), indent=1))
    return code


def _plain(value: Any) -> Any:
    """Return the value for strict JSON: infinities and NaN become strings."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _time(seconds: float | None) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # a damaged state may hold any number
        return str(seconds)


def _metrics(metrics: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items())
