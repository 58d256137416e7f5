"""Faults: each is put to a format many times, and what was then left is counted.

Outcomes: `new` and `old`, what loads is what was being saved or what was there before; `lost`, nothing loads;
`wrong`, values load that nobody saved; `unreported`, the save reported success, and what it saved does not load;
`crashed` and `hung`, the process that saved or loaded did; `debris`, files of the fault stay after the next save;
`blocked`, the next save fails.
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

from tests.faults import power
from tests.faults.formats import Arrays, Format, payload
from tests.faults.lab import ALWAYS, Ended, arm, disarm, each, folders, forked

FAILURES = (  # with which error, up to which call after the first that fails
    *((errno.ENOSPC, 0), (errno.ENOSPC, ALWAYS), (errno.EIO, 0), (errno.EIO, ALWAYS)),
    *((errno.EDQUOT, ALWAYS), (errno.EROFS, ALWAYS), (errno.EPERM, 0), (errno.EOPNOTSUPP, ALWAYS)),
)
PAGE = 4096
BATCH = 100


class Bench:
    """A folder with one saved generation, which attempts start from, and what came of them.

    Attributes
    ----------
    folder : str
        Of the attempt that is being made.
    counts : Counter of str
        The outcomes.
    errors : set of str
        What the saves that failed said.
    """

    def __init__(self, format: Format, work: Path) -> None:
        self.format, self.work, self.before = format, work, str(work / "before")
        self.folder = self._next()
        self.counts, self.errors = Counter[str](), set[str]()
        self._open: list[tuple[str, Ended]] = []  # attempts whose outcome is not looked at yet
        os.mkdir(self.before)
        format.save(self.before, payload(0))
        format.load(self.before)  # whatever is imported, it is now
        gc.collect()
        gc.freeze()  # collecting in a fork would copy all memory

    def _next(self) -> str:
        return str(self.work / secrets.token_hex(8) / "model")

    def reset(self) -> None:
        """Go on in a new folder, which has what was saved before."""
        self.folder = self._next()
        shutil.copytree(self.before, self.folder)

    def save(self, prepare: Callable[[], object], kill_after: float | None = None) -> Ended:
        """Save generation 1 in a fork that `prepare` set its fault for; what it says: done, or the error."""

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
                gc.collect()  # what is closed only now may crash only now
            disarm()
            say(said)

        return forked(work, kill_after)

    def attempt(self, prepare: Callable[[], object], kill_after: float | None = None) -> None:
        """Save under a fault; `settle` sees what is left."""
        self.reset()
        self._open.append((self.folder, self.save(prepare, kill_after)))
        if len(self._open) == BATCH:
            self.settle()

    def settle(self) -> None:
        """See what the attempts left, save again, and see what is left over then."""
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
        return f"{outcome} {'debris' if left - kinds or caught else ''}"


def loaded(format: Format, folder: str, generations: list[int]) -> str:
    """Load; whether what comes is one of the two generations, old and new."""
    try:
        arrays = format.load(folder)
    except Exception:
        return "lost"
    for generation, outcome in zip(generations, ("old", "new"), strict=True):
        if same(arrays, payload(generation)):
            return outcome
    return "wrong"


def same(arrays: Arrays, expected: Arrays) -> bool:
    """Whether names, dtypes, shapes and all bits are the same."""
    return arrays.keys() == expected.keys() and all(
        (arrays[name].dtype, arrays[name].shape) == (value.dtype, value.shape)
        and arrays[name].tobytes() == value.tobytes()
        for name, value in expected.items()
    )


def _calls(bench: Bench) -> int:
    """How many calls one undisturbed save makes."""

    def work(say: Callable[[str], None]) -> None:
        arm(bench.folder)
        bench.format.save(bench.folder, payload(1))
        say(str(disarm()))

    bench.reset()
    return int(forked(work).text)


def kills(bench: Bench, amount: int) -> None:
    """End by kill -9 before, amid and after every call of a save, and then at so many random instants."""
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
    """Every call of a save fails, once, or it and all after it."""
    for k in range(1, _calls(bench) + 1):
        for code, more in FAILURES:
            bench.attempt(lambda k=k, last=k + more, code=code: arm(bench.folder, "fail", k, last, code))


def interrupted_calls(bench: Bench, amount: int) -> None:
    """Signals interrupt every call; every write is a short one."""
    for k in range(1, _calls(bench) + 1):
        bench.attempt(lambda k=k: arm(bench.folder, "fail", k, k + 2, errno.EINTR))
    bench.attempt(lambda: arm(bench.folder, "short", 1, ALWAYS))


def full_disk(bench: Bench, amount: int) -> None:
    """The disk is full after every 4 KB, with and without reserving first; and so is what a process may write."""
    size = sum(entry.stat().st_size for entry in os.scandir(bench.before))
    for room in range(0, size + 2 * PAGE, PAGE):
        for reserves in (True, False):
            bench.attempt(lambda room=room, reserves=reserves: arm(bench.folder, room=room, reserves=reserves))
        limit = (room or 1, room or 1)
        bench.attempt(lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, limit))


def full_file_system(bench: Bench, amount: int) -> None:
    """A file system, where we may mount one, that is really full after every 4 KB."""
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
    """Leave just so many bytes free on a disk."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(PAGE)):
            pass
    os.truncate(path, path.stat().st_size // PAGE * PAGE - room)


def flipped_bits(bench: Bench, amount: int) -> None:
    """Bits of a small file flip: every one, or `amount` at random."""
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
    """A small file is cut at every length, or at `amount` random ones."""
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
    """What a damaged file gives: an error (`told`), the values that were saved all the same, or wrong ones."""
    try:
        arrays = bench.format.load(bench.folder)
    except Exception as error:
        bench.errors.add(type(error).__name__)
        return "told"
    return "unharmed" if same(arrays, payload(1, large=False)) else "wrong"


def power_loss(bench: Bench, amount: int) -> None:
    """The power fails after each call of a save, and after it: what an fsync has not followed may be lost."""
    bench.reset()
    _fail_power(bench, amount, known=["old", "new"])


def power_loss_at_first(bench: Bench, amount: int) -> None:
    """The same while the very first save makes the folder, too."""
    bench.folder = bench._next()
    os.makedirs(os.path.dirname(bench.folder))
    _fail_power(bench, amount, known=["lost", "new"])


def _fail_power(bench: Bench, amount: int, known: list[str]) -> None:
    """Record a save, make `amount` states that it may leave, and load each of them."""
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
    """How much of what is not durable is found: nothing, all, or any part."""
    return [0.0, 1.0, *(random.random() for _ in range(amount))]


def _found(bench: Bench, root: str, state: dict[str, bytes | str]) -> str:
    new = bench._next()
    power.lay_out(state, root, new)
    outcome = loaded(bench.format, os.path.join(new, "model"), [0, 1])
    shutil.rmtree(os.path.dirname(new))
    return outcome


def writers(bench: Bench, amount: int) -> None:
    """Eight processes save at once, again and again; meanwhile others load, and in the end what is there loads."""
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
    """Load in a fork; whether what comes is what one of the writers saved."""

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
    """Put a format to a fault; the counts and the errors, as JSON can hold them."""
    with folders() as work:
        bench = Bench(format, work)
        FAULTS[fault](bench, amount)
        bench.settle()
    return {"counts": dict(+bench.counts), "errors": sorted(bench.errors)}
