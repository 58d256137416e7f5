"""Power loss: derive the possible states of a disk after a power failure from the calls of a save.

Data is durable after an fsync. Of the rest, any part may have reached the disk, in any order: any sectors of
written data, any change of a file's length, any change of a name (a rename happens wholly or not at all).
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from typing import NamedTuple

MADE = "directory"  # marks a directory among the names
SECTORS = (512, 4096)


class Call(NamedTuple):
    """A line of faulty.c's log."""

    what: str
    path: str
    other: str
    at: int
    data: bytes


def read_log(path: str) -> list[Call]:
    """Return the calls in their order."""
    calls = []
    with open(path, "rb") as file:
        while line := file.readline():
            what, name, other, at, length = line.decode().rstrip("\n").split("\t")
            calls.append(Call(what, name, other, int(at), file.read(int(length))))
    return calls


@dataclass
class Inode:
    """A file: its durable content, and the changes after that: (offset, data), or (length, None)."""

    content: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def found(self, chance: float, sector: int) -> bytes:
        """Return possible content: each pending sector survives with this probability."""
        content = bytearray(self.content)
        for at, data in self.pending:
            if data is None:
                if random.random() < chance:
                    del content[at:]
                    content.extend(bytes(at - len(content)))
                continue
            end, place = at + len(data), at
            while place < end:
                size = min(end, (place // sector + 1) * sector) - place
                if random.random() < chance:
                    content.extend(bytes(max(0, place + size - len(content))))
                    content[place : place + size] = data[place - at : place - at + size]
                place += size
        return bytes(content)


Change = tuple[tuple[str, "Inode | str | None"], ...]  # names and their new targets, changed at once


class Disk:
    """The names and files below a directory while calls are replayed."""

    def __init__(self, root: str) -> None:
        self.durable: dict[str, Inode | str] = {}
        for folder, folders, files in os.walk(root):
            self.durable.update((os.path.join(folder, name), MADE) for name in folders)
            for name in files:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    self.durable[path] = Inode(file.read())
        self.names = dict(self.durable)
        self.pending: list[Change] = []
        self.opened: dict[str, Inode] = {}  # by the name of the file at that time

    def replay(self, call: Call) -> None:
        """Replay one call."""
        name = call.path
        if call.what in {"open", "create"}:
            if name not in self.names:
                self._change((name, Inode()))
            elif call.what == "create":
                self._inode(name).pending.append((0, None))
            self.opened[name] = self._named(name)
        elif call.what == "write":
            self._inode(name).pending.append((call.at, call.data))
        elif call.what == "truncate":
            self._inode(name).pending.append((call.at, None))
        elif call.what == "fsync":
            self._sync(name)
        elif call.what == "mkdir":
            self._change((name, MADE))
        elif call.what == "unlink":
            self._change((name, None))
        elif call.what == "link":
            self._change((call.other, self._named(name)))
        elif name in self.names:  # else faulty.c found it again when the file was closed
            self._change((call.other, self._named(name)), (name, None))

    def _named(self, name: str) -> Inode:
        inode = self.names[name]
        assert isinstance(inode, Inode), name
        return inode

    def _inode(self, name: str) -> Inode:
        return self.opened.get(name) or self._named(name)

    def _change(self, *change: tuple[str, Inode | str | None]) -> None:
        self.pending.append(change)
        _apply(self.names, change)

    def _sync(self, name: str) -> None:
        if name in self.opened:
            inode = self.opened[name]
            inode.content = inode.found(1.0, 512)
            inode.pending.clear()
            return
        rest = []
        for change in self.pending:  # of a directory: the names in it
            if os.path.dirname(change[0][0]) == name:
                _apply(self.durable, change)
            else:
                rest.append(change)
        self.pending = rest

    def found(self, chance: float) -> dict[str, bytes | str]:
        """Return one possible state, by path."""
        names, sector = dict(self.durable), random.choice(SECTORS)
        for change in self.pending:
            if random.random() < chance:
                _apply(names, change)
        content = {id(inode): inode.found(chance, sector) for inode in names.values() if isinstance(inode, Inode)}
        return {path: MADE if isinstance(inode, str) else content[id(inode)] for path, inode in names.items()}


def _apply(names: dict[str, Inode | str], change: Change) -> None:
    for name, inode in change:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def lay_out(state: dict[str, bytes | str], old: str, new: str) -> None:
    """Copy a state of the directory `old` to the directory `new`."""
    os.makedirs(new)
    there = {old}
    for path, content in sorted(state.items()):
        if os.path.dirname(path) not in there:  # everything in a lost directory is lost
            continue
        target = os.path.join(new, os.path.relpath(path, old))
        if isinstance(content, str):
            there.add(path)
            os.mkdir(target)
        else:
            with open(target, "wb") as file:
                file.write(content)
