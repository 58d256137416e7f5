"""Faults: try each many times on saves in a format, and count the outcomes.

Outcomes: `new` or `old`, the new or the former values load; `lost`, nothing loads; `wrong`, values load that
nobody saved; `unreported`, the save reported success, but its values do not load; `crashed` or `hung`, the process
that saved or loaded did; `debris`, files of the fault stay after the next save; `blocked`, the next save fails.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import resource
import secrets
import shutil
import signal
import statistics
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastvar as fv
from fastvar.checkpoint.part_list import is_part
from fastvar.checkpoint.sets import CheckpointFile
from tests.faults import power
from tests.faults.formats import Arrays, Format, payload
from tests.faults.lab import ALWAYS, Ended, arm, disarm, each, folders, forked

FAILURES = (  # the error, and the last call that fails
    *((errno.ENOSPC, 0), (errno.ENOSPC, ALWAYS), (errno.EIO, 0), (errno.EIO, ALWAYS)),
    *((errno.EDQUOT, ALWAYS), (errno.EROFS, ALWAYS), (errno.EPERM, 0), (errno.EOPNOTSUPP, ALWAYS)),
)
PAGE = 4096
BATCH = 100


class Bench:
    """A folder with one saved generation, from which attempts start, and their outcomes.

    Attributes
    ----------
    folder : str
        The folder of the present attempt.
    counts : Counter of str
        The outcomes.
    errors : set of str
        The messages of failed saves.
    """

    def __init__(self, format: Format, work: Path) -> None:
        self.format, self.work, self.before = format, work, str(work / "before")
        self.folder = self._next()
        self.counts, self.errors = Counter[str](), set[str]()
        self._open: list[tuple[str, Ended]] = []  # attempts whose outcome has not been examined
        os.mkdir(self.before)
        format.save(self.before, payload(0))
        format.load(self.before)  # import everything now
        gc.collect()
        gc.freeze()  # collecting in a fork would copy all memory

    def _next(self) -> str:
        return str(self.work / secrets.token_hex(8) / "model")

    def reset(self) -> None:
        """Continue in a new folder that holds the first generation."""
        self.folder = self._next()
        shutil.copytree(self.before, self.folder)

    def save(self, prepare: Callable[[], object], kill_after: float | None = None) -> Ended:
        """Save generation 1 in a fork, with the fault set by `prepare`. Return what it says: done or an error."""

        def work(say: Callable[[str], None]) -> None:
            arrays = payload(1)
            prepare()
            if kill_after is not None:
                say(" ")
            try:
                self.format.save(self.folder, arrays)
                said = "done"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                del error
                gc.collect()  # closing can crash, too
            disarm()
            say(said)

        return forked(work, kill_after)

    def attempt(self, prepare: Callable[[], object], kill_after: float | None = None) -> None:
        """Save under a fault; `settle` examines the result."""
        self.reset()
        self._open.append((self.folder, self.save(prepare, kill_after)))
        if len(self._open) == BATCH:
            self.settle()

    def settle(self) -> None:
        """Examine the results of the attempts, save again, and look for debris."""
        outcomes = each([folder for folder, _ in self._open], self._after)
        for (folder, ended), after in zip(self._open, outcomes, strict=True):
            text = ended.text.strip()
            outcome = after.split()[0]
            if text not in {"", "done"}:
                self.errors.add(text.replace(os.path.dirname(folder), ""))
            if ended.signal not in {0, signal.SIGKILL}:
                outcome = "crashed"
            elif text == "done" and outcome in {"old", "lost"}:
                outcome = "unreported"
            self.counts[outcome] += 1
            self.counts["debris"] += "debris" in after
            self.counts["blocked"] += "blocked" in after
            shutil.rmtree(os.path.dirname(folder))
        self._open.clear()

    def _after(self, folder: str) -> str:
        outcome = loaded(self.format, folder, [0, 1])
        try:
            self.format.save(folder, payload(2))
        except Exception:
            return f"{outcome} blocked"
        kinds = {os.path.splitext(name)[1] for name in os.listdir(self.before)}
        left = {os.path.splitext(name)[1] for name in os.listdir(folder) if os.path.isfile(f"{folder}/{name}")}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded(self.format, folder, [0, 1])  # it warns of files that are damaged
        return f"{outcome} {'debris' if left - kinds or caught or _orphans(folder) else ''}"


def _orphans(folder: str) -> set[str]:
    """Return the part files that no checkpoint in the folder names."""
    names = {name for name in os.listdir(folder) if name.endswith(".h5")}
    orphans = {name for name in names if is_part(name)}
    for name in names - orphans:
        with contextlib.suppress(fv.CheckpointError), CheckpointFile(os.path.join(folder, name)) as file:
            orphans -= {part.name for part in file.parts.files} if file.parts else set()
    return orphans


def loaded(format: Format, folder: str, generations: list[int]) -> str:
    """Load, and return whether the values are of the old or the new generation."""
    try:
        arrays = format.load(folder)
    except Exception:
        return "lost"
    for generation, outcome in zip(generations, ("old", "new"), strict=True):
        if same(arrays, payload(generation)):
            return outcome
    return "wrong"


def same(arrays: Arrays, expected: Arrays) -> bool:
    """Return whether names, dtypes, shapes and all bits are the same."""
    return arrays.keys() == expected.keys() and all(
        (arrays[name].dtype, arrays[name].shape) == (value.dtype, value.shape)
        and arrays[name].tobytes() == value.tobytes()
        for name, value in expected.items()
    )


def _calls(bench: Bench) -> int:
    """Return how many calls an undisturbed save makes."""

    def work(say: Callable[[str], None]) -> None:
        arm(bench.folder)
        bench.format.save(bench.folder, payload(1))
        say(str(disarm()))

    bench.reset()
    return int(forked(work).text)


def kills(bench: Bench, amount: int) -> None:
    """Kill (-9) a save before, within and after each of its calls, and then at `amount` random instants."""
    calls = _calls(bench)
    for k in range(1, calls + 1):
        for action in ("kill before", "kill amid", "kill after"):
            bench.attempt(lambda k=k, action=action: arm(bench.folder, action, k, k))
    times = []
    for _ in range(9):
        bench.reset()
        start = time.perf_counter()
        bench.save(lambda: None)
        times.append(time.perf_counter() - start)
    for _ in range(amount):
        bench.attempt(lambda: None, kill_after=random.uniform(0, statistics.median(times)))


def failing_calls(bench: Bench, amount: int) -> None:
    """Let each call of a save fail, alone or with all after it, with all errors or the first `amount`."""
    for k in range(1, _calls(bench) + 1):
        for code, more in FAILURES[: amount or None]:
            bench.attempt(lambda k=k, last=k + more, code=code: arm(bench.folder, "fail", k, last, code))


def interrupted_calls(bench: Bench, amount: int) -> None:
    """Interrupt every call by a signal, and make every write a short one."""
    for k in range(1, _calls(bench) + 1):
        bench.attempt(lambda k=k: arm(bench.folder, "fail", k, k + 2, errno.EINTR))
    bench.attempt(lambda: arm(bench.folder, "short", 1, ALWAYS))


def full_disk(bench: Bench, amount: int) -> None:
    """Let the disk be full after each 4 KB, with and without reserving space; also limit the size of files."""
    size = sum(entry.stat().st_size for entry in os.scandir(bench.before))
    for room in range(0, size + 2 * PAGE, PAGE):
        for reserves in (True, False):
            bench.attempt(lambda room=room, reserves=reserves: arm(bench.folder, room=room, reserves=reserves))
        limit = (room or 1, room or 1)
        bench.attempt(lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, limit))


def full_file_system(bench: Bench, amount: int) -> None:
    """Use a real file system, if we may mount one, that is full after each 4 KB."""
    disk = bench.work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        return
    try:
        shutil.copytree(bench.before, disk / "model")
        bench.folder = str(disk / "model")
        for room in range(0, 1 << 19, PAGE):
            _fill(disk / "filler", room)
            text = bench.save(lambda: None).text
            outcome = loaded(bench.format, bench.folder, [0, 1])
            bench.counts["unreported" if text == "done" and outcome != "new" else outcome] += 1
            if outcome != "old":
                break
    finally:
        subprocess.run(["umount", disk], check=True)


def _fill(path: Path, room: int) -> None:
    """Fill a disk except for a number of bytes."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(PAGE)):
            pass
    os.truncate(path, path.stat().st_size // PAGE * PAGE - room)


def flipped_bits(bench: Bench, amount: int) -> None:
    """Flip each bit of a small file, or `amount` random ones."""
    path, content = _small_file(bench)
    places = [(at, bit) for at in range(len(content)) for bit in range(8)]
    if amount:
        places = random.sample(places, min(amount, len(places)))

    def outcome(place: tuple[int, int]) -> str:
        at, bit = place
        flipped = bytes([content[at] ^ 1 << bit])
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), flipped, at)
            result = _read(bench)
            os.pwrite(file.fileno(), content[at : at + 1], at)
        return result

    bench.counts.update(each(places, outcome))


def truncations(bench: Bench, amount: int) -> None:
    """Cut a small file at every length, or at `amount` random ones."""
    path, content = _small_file(bench)
    lengths = list(range(len(content)))
    if amount:
        lengths = random.sample(lengths, min(amount, len(lengths)))

    def outcome(length: int) -> str:
        with open(path, "wb") as file:
            file.write(content[:length])
        return _read(bench)

    bench.counts.update(each(lengths, outcome))


def _small_file(bench: Bench) -> tuple[str, bytes]:
    os.makedirs(bench.folder)
    bench.format.save(bench.folder, payload(1, large=False))
    (entry,) = [entry for entry in os.scandir(bench.folder) if entry.is_file() and not entry.name.startswith(".")]
    with open(entry.path, "rb") as file:
        return entry.path, file.read()


def _read(bench: Bench) -> str:
    """Load a damaged file: the outcome is an error (`told`), the saved values, or wrong ones."""
    try:
        arrays = bench.format.load(bench.folder)
    except Exception as error:
        bench.errors.add(type(error).__name__)
        return "told"
    return "unharmed" if same(arrays, payload(1, large=False)) else "wrong"


def power_loss(bench: Bench, amount: int) -> None:
    """Cut the power after each call of a save, and after the save: data without an fsync may be lost."""
    bench.reset()
    _fail_power(bench, amount, known=["old", "new"])


def power_loss_at_first(bench: Bench, amount: int) -> None:
    """The same for the first save, which also makes the folder."""
    bench.folder = bench._next()
    os.makedirs(os.path.dirname(bench.folder))
    _fail_power(bench, amount, known=["lost", "new"])


def _fail_power(bench: Bench, amount: int, known: list[str]) -> None:
    """Record a save, make `amount` states of the disk that are possible, and load each."""
    root, record = os.path.dirname(bench.folder), str(bench.work / "record")
    log = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    disk = power.Disk(root)
    bench.save(lambda: arm(root, log=log))
    os.close(log)
    calls = power.read_log(record)
    for call in [*calls, None]:
        chances = _chances(amount // 2 if call is None else amount // 2 // len(calls))
        states = [disk.found(chance) for chance in chances]
        for outcome in each(states, lambda state: _found(bench, root, state)):
            if call is not None:
                bench.counts["old" if outcome == known[0] else outcome] += 1
            else:
                bench.counts["unreported" if outcome == "old" else outcome] += 1
        if call is not None:
            disk.replay(call)


def _chances(amount: int) -> list[float]:
    """Draw how much of the data that is not durable survives: nothing, all, or any part."""
    return [0.0, 1.0, *(random.random() for _ in range(amount))]


def _found(bench: Bench, root: str, state: dict[str, bytes | str]) -> str:
    new = bench._next()
    power.lay_out(state, root, new)
    outcome = loaded(bench.format, os.path.join(new, "model"), [0, 1])
    shutil.rmtree(os.path.dirname(new))
    return outcome


def writers(bench: Bench, amount: int) -> None:
    """Let eight processes save repeatedly while others load. In the end, a checkpoint loads."""
    for _ in range(amount or 3):
        bench.reset()
        children = [_writer(bench, number) for number in range(1, 9)]
        while children:
            known = list(range(9))
            bench.counts[_one_of(bench, known)] += 1
            children = [child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)]
        bench.counts[_one_of(bench, list(range(9)))] += 1


def _writer(bench: Bench, number: int) -> int:
    child = os.fork()
    if child == 0:
        for _ in range(10):
            try:
                bench.format.save(bench.folder, payload(number))
            except Exception:
                time.sleep(0.001)
        os._exit(0)
    return child


def _one_of(bench: Bench, generations: list[int]) -> str:
    """Load in a fork. Return whether the values are those of one writer."""

    def work(say: Callable[[str], None]) -> None:
        try:
            arrays: Any = bench.format.load(bench.folder)
        except Exception:
            return say("lost")
        return say("new" if any(same(arrays, payload(g)) for g in generations) else "wrong")

    return forked(work).text or "crashed"


FAULTS: dict[str, Callable[[Bench, int], None]] = {
    "kills": kills,
    "failing calls": failing_calls,
    "interrupted calls": interrupted_calls,
    "full disk": full_disk,
    "full file system": full_file_system,
    "flipped bits": flipped_bits,
    "truncations": truncations,
    "power loss": power_loss,
    "power loss at first": power_loss_at_first,
    "writers": writers,
}


def put(fault: str, format: Format, amount: int) -> dict[str, Any]:
    """Put a format to a fault. Return the counts and errors for JSON."""
    with folders() as work:
        bench = Bench(format, work)
        FAULTS[fault](bench, amount)
        bench.settle()
    return {"counts": dict(+bench.counts), "errors": sorted(bench.errors)}
