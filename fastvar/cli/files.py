"""The commands for checkpoint files: inspect, verify, diff and convert."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable

from fastvar import checkpoint, tables
from fastvar.checkpoint import conversion, differences, inspection
from fastvar.cli import changes, screen
from fastvar.cli.ending import DAMAGED, DIFFERENT, FINE, code_of, message
from fastvar.cli.flags import spelled

Add = Callable[..., argparse.ArgumentParser]  # adds a command, which a function of the arguments runs
_OPAQUE = "the dtype of opaque bytes in a file of another library, such as bfloat16"


def add_to(add: Add) -> None:
    """Add the commands to a parser."""
    command = add("inspect", _inspect, "show what is in a checkpoint, or in a folder of them")
    command.add_argument("path", metavar="FILE|DIR", help="a file may also be any HDF5, .npz or safetensors")
    command.add_argument(
        "--values", action="store_true", help="of a file: show norm, minimum, maximum, non-finite numbers"
    )
    command.add_argument("--quick", action="store_true", help="of a folder: do not verify the bytes of tensors")
    command.add_argument("--opaque", metavar="DTYPE", help=_OPAQUE)
    _add_json(command)

    command = add("verify", _verify, "read whole checkpoints and compare checksums")
    command.add_argument("paths", metavar="FILE|DIR", nargs="+")
    _add_json(command)

    command = add("diff", _diff, "show what changed between two checkpoints")
    command.add_argument("before", metavar="A")
    command.add_argument("after", metavar="B")
    command.add_argument("--plot", metavar="FILE.png", help="draw the relative change of each tensor")
    command.add_argument("--opaque", metavar="DTYPE", help=_OPAQUE)
    _add_json(command)

    command = add(
        "convert",
        _convert,
        "convert a checkpoint to .npz, .safetensors or plain HDF5, or one of these to a checkpoint",
    )
    command.add_argument("source", metavar="SOURCE")
    command.add_argument("target", metavar="TARGET", help=".h5 is plain HDF5 if SOURCE is a checkpoint")
    command.add_argument(
        "--to", choices=conversion.FORMATS, help="the format; by default that of the ending of TARGET"
    )
    command.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")
    command.add_argument("--weights-only", action="store_true", help="leave out the slots of optimizers")
    command.add_argument(
        "--names",
        choices=conversion.NAMINGS,
        help="torch: dots in names, as in a state_dict of PyTorch",
    )
    command.add_argument(
        "--prefix", metavar="NAME", help="take only tensors below NAME, such as model, and leave it out of names"
    )
    command.add_argument("--opaque", metavar="DTYPE", help=_OPAQUE)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _inspect(given: argparse.Namespace) -> int:
    if os.path.isdir(given.path):
        if given.values or given.opaque:
            raise ValueError(f"{given.path}: --values and --opaque are for a file, and this is a folder")
        return _inspect_folder(given)
    if given.quick:
        raise ValueError(f"{given.path}: --quick is for a folder, and this is a file")
    found = checkpoint.inspect(given.path, values=given.values, opaque=given.opaque)
    if given.json:
        screen.write_json(dataclasses.asdict(found))
        return FINE
    parts = f", with {tables.count(len(found.parts), 'part file')}" * bool(found.parts)
    screen.say(f"{found.path}: {found.format}, {tables.size(found.size)}{parts}{', pinned' * found.pinned}")
    if found.run is not None:
        screen.say(
            f"step {found.step:,}, save {found.counter:,} of run {found.run[:8]}, {tables.moment(found.time)}"
        )
    if found.metrics:
        screen.say(f"metrics: {screen.metrics(found.metrics)}")
    _show_tensors(found.tensors, given.values)
    for keyword, value in found.state.items():
        text = json.dumps(value)
        screen.say(f"{keyword}: {text[:200]}{'... (--json shows all)' * (len(text) > 200)}")
    for note in found.notes:
        screen.say(f"note: {spelled(note, given.parser)}")
    return FINE


def _show_tensors(tensors: list[inspection.Tensor], values: bool) -> None:
    screen.write("")
    rows = []
    for tensor in tensors:
        row = [tensor.name, tensor.dtype, str(list(tensor.shape)), f"{tensor.bytes:,}"]
        if tensor.values is not None:
            norm, low, high, nonfinite = tensor.values
            row += [f"{norm:.4g}", f"{low:.4g}", f"{high:.4g}", f"{nonfinite:,}"]
        rows.append(row)
    screen.table(["tensor", "dtype", "shape", ">bytes"] + [">norm", ">min", ">max", ">non-finite"] * values, rows)
    numbers = sum(math.prod(tensor.shape) for tensor in tensors)
    total = tables.size(sum(tensor.bytes for tensor in tensors))
    screen.say(f"{tables.count(len(rows), 'tensor')}, {tables.count(numbers, 'number')}, {total}")


def _inspect_folder(given: argparse.Namespace) -> int:
    listed = checkpoint.inspect_folder(given.path, quick=given.quick)
    damaged = sum(bool(item.problem) for item in listed)
    code = DAMAGED if damaged else FINE
    if given.json:
        screen.write_json([dataclasses.asdict(item) for item in listed])
        return code
    rows = []
    for item in listed:
        name, found = os.path.basename(item.path), item.inspection
        numbers = ["", "", ""]
        if found is not None:
            numbers = [f"{found.step:,}", f"{found.counter:,}", tables.moment(found.time)[:16]]
        problem = item.problem and item.problem.removeprefix(f"{item.path}: ")
        what = "whole" if problem is None and not given.quick else problem or "not verified"
        pinned = ", pinned" * (found is not None and found.pinned)
        metrics = screen.metrics(found.metrics if found else {})
        rows.append([name, *numbers, tables.size(item.size), metrics, what + pinned])
    if not rows:
        screen.say(f"{given.path}: there is no checkpoint in this folder")
        return code
    screen.table(["checkpoint", ">step", ">save", "saved at", ">size", "metrics", "state"], rows)
    screen.say(f"{given.path}: {tables.count(len(rows), 'checkpoint')}, {damaged:,} damaged")
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
            results[path] = message(error)
            code = max(code, code_of(error))
        if not given.json:
            screen.say(results[path] or f"{path}: whole", flush=True)
    if given.json:
        screen.write_json([{"path": path, "problem": problem} for path, problem in results.items()])
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


def _file(path: str) -> str:
    """Return the path unless it is a folder."""
    if os.path.isdir(path):
        found = inspection.checkpoints_in(path)
        raise ValueError(f"{path}: this is a folder; give a file{f', such as {found[-1]}' if found else ''}")
    return path


def _diff(given: argparse.Namespace) -> int:
    found = checkpoint.diff(_file(given.before), _file(given.after), opaque=given.opaque)
    if given.json:
        screen.write_json(changes.as_json(found))
    else:
        changes.show(found)
    if given.plot:
        differences.plot(found, given.plot)
    return DIFFERENT if found else FINE


def _convert(given: argparse.Namespace) -> int:
    notes = checkpoint.convert(
        _file(given.source),
        given.target,
        to=given.to,
        overwrite=given.overwrite,
        opaque=given.opaque,
        weights_only=given.weights_only,
        names=given.names,
        prefix=given.prefix,
    )
    for note in notes:
        screen.say(f"note: {spelled(note, given.parser)}")
    screen.say(f"{given.target}: written")
    return FINE
