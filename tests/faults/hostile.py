"""Hostile files: a good file changed by someone who knows the format, or who does not.

Most mutants have correct hashes, so that only the other checks of the reader can find them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

import fastvar as fv
from fastvar.checkpoint.file_format import Entry, Record, Section, uncovered
from fastvar.checkpoint.reader import File
from tests.faults.lab import each, folders

ROOM = 64 << 20  # the memory that reading one of these files (some 20 KB) may take
NUMBERS = (0, 1, -1, 7, 4095, 4096, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, 10**400)
VALUES = (
    *(None, True, "", "x", "float64", "object", "/etc/passwd", "../x", "a\0b", "\ud800", "é" * 5000, 0.5, 1e308),
    *(float("nan"), float("inf"), [], {}, [[]], {"$array": "state/arrays/99"}, {"$array": []}, [1] * 40),
    *([1 << 40, 1 << 40], [0, 1 << 62], "0" * 32, "variables/w"),
)


class Target:
    """Objects of every kind that a checkpoint holds, as targets for hostile files."""

    def __init__(self) -> None:
        self.w = fv.Variable(np.linspace(-1, 1, 50, dtype=np.float32), name="w")
        self.b = fv.Variable(np.ones((2, 0, 3), np.int16), name="b")
        self.optimizer = fv.optimizers.Adam(use_ema=True, learning_rate=fv.schedules.CosineDecay(0.1, 9))
        self.optimizer.build([self.w])
        self.rng = np.random.default_rng(1)
        self.data: dict[str, Any] = {"position": 3, "seen": np.arange(3), "more": [{"a": 1.5}]}
        self.checkpoint = fv.Checkpoint(
            variables=[self.w, self.b], optimizer=self.optimizer, rng=self.rng, data=self.data
        )

    def contents(self) -> str:
        state = [self.w.numpy().tobytes(), self.b.shape, *(v.numpy().tobytes() for v in self.optimizer.variables)]
        return repr([*state, self.optimizer.iterations, self.rng.bit_generator.state, self.data])


def mutant(good: bytes) -> bytes:
    """Return a mutant of the good file; there are endlessly many."""
    if random.random() < 0.15:
        return _random_bytes(good)
    record = Record.unpack(good)
    manifest, state = (_text(good, section) for section in (record.manifest, record.state))
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        if random.random() < 0.5:
            manifest = _mutated(manifest)
        else:
            state = _mutated(state)
    return _forged(good, record, manifest, state, spoilt=0.1)


def _random_bytes(good: bytes) -> bytes:
    content = bytearray(good)
    for _ in range(random.choice((1, 10, 1000))):
        content[random.randrange(len(content))] = random.randrange(256)
    if random.random() < 0.5:
        at, end = sorted(random.sample(range(len(content)), 2))
        content[at:end] = random.choice((b"", bytes(end - at), bytes(content[at:end]) * 2))
    return bytes(content)


def _text(good: bytes, section: Section) -> bytes:
    return good[section.offset : section.offset + section.length].rstrip()


def _mutated(text: bytes) -> bytes:
    """Change one thing in a JSON text."""
    depth = random.choice((200, 900, 100_000))
    inside = text.replace(b'"position": ', b'"position": ' + b"[" * depth + b"]" * depth + b', "x": ')
    rough = (
        inside,  # of the program's state
        text.replace(b"{", b"{" + b'"a":[' * 5000, 1),
        text[:-1] + b", " + text[1:],  # every key twice
        text[:-1] + b', "deep": ' + b"[" * depth + b"]" * depth + b"}",
        text[: random.randrange(len(text))],
    )
    if random.random() < 0.2:
        return random.choice(rough)
    try:
        value = json.loads(text)
        _change(value)
        return json.dumps(value).encode()
    except (ValueError, RecursionError):  # of a mutant
        return text


def _change(value: Any) -> None:
    """Remove, rename or replace one thing in a JSON value."""
    nodes = list(_nodes(value))
    if not nodes:
        return
    parent, key = random.choice(nodes)
    if random.random() < 0.1:
        del parent[key]
    elif random.random() < 0.1 and isinstance(parent, dict):
        parent[random.choice(["", "/", "x" * 70_000, "state", "manifest", "variables/w/x"])] = parent.pop(key)
    else:
        other, name = random.choice(nodes)
        near = parent[key] + random.choice((-1, 1, 8)) if type(parent[key]) is int else 1
        parent[key] = copy.deepcopy(random.choice((*NUMBERS, *VALUES, near, other[name])))


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Yield (container, key) for everything in a JSON value."""
    found, rest = [], [value]
    while rest:
        parent = rest.pop()
        for key in list(parent) if isinstance(parent, dict) else range(len(parent)):
            found.append((parent, key))
            if isinstance(parent[key], (dict, list)):
                rest.append(parent[key])
    return found


def as_version_1(good: bytes) -> bytes:
    """Return the same checkpoint in the older format."""
    record = Record.unpack(good)
    rows = json.loads(_text(good, record.manifest))
    entries = {name: dict(zip(Entry._fields, row, strict=True)) for name, row in rows.items()}
    older = dataclasses.replace(record, version=1)
    return _forged(good, older, json.dumps(entries).encode(), _text(good, record.state))


def _forged(good: bytes, record: Record, manifest: bytes, state: bytes, spoilt: float = 0) -> bytes:
    """Make a file with these texts at its end and correct hashes. Some files get a wrong field."""
    content = bytearray(good)
    try:
        entries = json.loads(manifest)
        places = _rehash(content, entries)
        manifest = json.dumps(entries).encode()
    except (ValueError, RecursionError, AttributeError):
        places = []
    sections = {}
    for name, text in (("manifest", manifest), ("state", state)):
        sections[name] = Section(len(content), len(text), xxhash.xxh3_128_hexdigest(text))
        content += text
    places += [(section.offset, section.length) for section in sections.values()]
    try:
        gaps = uncovered(places, len(content))
    except ValueError:
        gaps = []
    metadata = xxhash.xxh3_128_hexdigest(b"".join(content[at : at + length] for at, length in gaps))
    fields: dict[str, Any] = {**sections, "metadata": metadata, "length": len(content)}
    if random.random() < spoilt:
        name = random.choice([*sections, "length", "step"])
        number = random.choice([n for n in NUMBERS if 0 <= n < 1 << 64])
        fields[name] = fields[name]._replace(length=number) if name in sections else number
    content[:4096] = dataclasses.replace(record, **fields).pack()
    return bytes(content)


def _rehash(content: bytearray, entries: dict[str, Any]) -> list[tuple[int, int]]:
    """Give every entry the hash of the bytes at its offset. Return the offsets."""
    places = []
    for entry in entries.values():
        keys = Entry._fields if isinstance(entry, dict) else range(len(Entry._fields))  # of version 1, and later
        with contextlib.suppress(LookupError, TypeError):
            _, _, offset, length, _ = (entry[key] for key in keys)
            if type(offset) is int and type(length) is int and 0 <= offset <= offset + length <= len(content):
                entry[keys[-1]] = xxhash.xxh3_128_hexdigest(content[offset : offset + length])
                places.append((offset, length))
    return places


def read(path: str, target: Target, before: str) -> str:
    """Read a file in every way. Return the outcome: an error (`told`), none, or a forbidden one."""
    outcomes = set()
    manager = fv.CheckpointManager(target.checkpoint, os.path.dirname(path))
    ways = {
        "list_variables": lambda: fv.list_variables(path),
        "verify": lambda: _verify(path),
        "restore": lambda: target.checkpoint.restore(path),
        "partial restore": lambda: Target().checkpoint.restore(path, partial=True),
        "restore_or_initialize": manager.restore_or_initialize,
    }
    for name, way in ways.items():
        try:
            way()
            outcomes.add("read")
        except (fv.CheckpointError, ValueError):
            outcomes.add("told")
            if target.contents() != before:
                outcomes.add("changed")
        except BaseException as error:
            outcomes.add(f"{type(error).__name__} in {name}: {error}"[:300].replace("\n", " "))
    return min(outcomes - {"told", "read"}, default="told" if "told" in outcomes else "read")


def _verify(path: str) -> None:
    with File(path) as file:
        file.verify()


def hostile_files(amount: int) -> dict[str, Any]:
    """Read `amount` mutants, with bounded memory, and watch for other files being opened."""
    random.seed(20)  # the same mutants each time
    with folders() as work:
        path, target = str(work / "ckpt-1.h5"), Target()
        target.checkpoint.save(path)
        good = Path(path).read_bytes()
        older = as_version_1(good)
        before = target.contents()
        opened: list[str] = []
        sys.addaudithook(_watch(opened))
        with open("/proc/self/statm", encoding="ascii") as file:
            limit = int(file.read().split()[0]) * resource.getpagesize() + ROOM

        def outcome(content: bytes) -> str:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            with open(path, "wb") as file:
                file.write(content)
            opened.clear()
            result = read(path, Target(), before)
            strange = {name for name in opened if not name.startswith(str(work)) and "site-packages" not in name}
            return f"opened {strange}" if strange else result

        counts = Counter(each((mutant(random.choice((good, older))) for _ in range(amount)), outcome))
    return {"counts": dict(counts), "errors": []}


def _watch(opened: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"open", "os.symlink", "os.rename", "os.remove", "subprocess.Popen", "socket.connect"}:
            opened.append(str(arguments[0]))

    return hook
