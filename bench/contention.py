"""Steps of Adam while other processes want the processors, too.

    python bench/contention.py [TREE ...]

Each TREE is another working tree of fastvar with built kernels, such as that of an older commit. All take
turns, each in a process of its own: this tree on 2 threads and on one, each TREE on 2, and PyTorch's fused Adam
on 2 if it is installed. Burners are processes that only count. Figures are means and 90th percentiles of the
time of a step, in times of the mean of one thread in the same rounds. "training" is a whole iteration: PyTorch's
forward and backward on 2 threads, then the step.

Where that can be read (Linux), a round counts as quiet if processes that are not ours used at most 5 % of one
processor in each of its parts. Figures are those of the quiet rounds, which are repeated up to a limit. If there
are fewer than three, all rounds count. "quiet" is how many of all were.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, quantiles
from time import perf_counter, process_time, sleep
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent.parent
CASES = ((1, 2**20), (1, 2**24), (200, 1000), (1000, 64))  # variables, elements of each
SITUATIONS = (("", 0, 0.0), ("", 1, 0.0), ("", 2, 0.0), ("", 0, 0.01), ("training", 0, 0.0))
WANTED, MOST, SECONDS = 7, 21, 0.3  # quiet rounds, all rounds, and how long each contender runs in a round
OTHERS = 0.05  # of a processor
BURNER = "import time\nend = time.perf_counter() + 600\nwhile time.perf_counter() < end: pass"


def stepping(rival: str, threads: int, count: int, size: int) -> Callable[[], object]:
    """Return a step of Adam."""
    if rival == "torch":
        return torch_optimizer(rival, threads, count, size).step
    import numpy as np

    import fastvar as fv

    fv.set_num_threads(threads)
    weights = [fv.Variable(np.ones(size, np.float32)) for _ in range(count)]
    gradients = [np.full(size, 0.1, np.float32) for _ in range(count)]
    optimizer = fv.optimizers.Adam()
    optimizer.build(weights)
    return lambda: optimizer.apply(gradients)


def torch_optimizer(rival: str, threads: int, count: int, size: int) -> Any:
    """Return an Adam for PyTorch: its own, or ours."""
    import torch

    torch.set_num_threads(2)
    params = [torch.nn.Parameter(torch.ones(size)) for _ in range(count)]
    for p in params:
        p.grad = torch.full((size,), 0.1)
    if rival == "torch":
        return torch.optim.Adam(params, fused=True)
    import fastvar as fv
    from fastvar.torch import optim

    fv.set_num_threads(threads)
    return optim.Adam(params)


def training(rival: str, threads: int, count: int, size: int) -> Callable[[], object]:
    """Return an iteration: a forward and a backward of PyTorch on two threads, and a step."""
    import torch

    optimizer = torch_optimizer(rival, threads, count, size)
    rows = next(r for r in range(int(size**0.5), 0, -1) if size % r == 0)
    given = torch.ones(64, rows)

    def iteration() -> None:
        optimizer.zero_grad()
        outputs = [torch.tanh(given @ p.view(rows, -1)).sum() for p in optimizer.param_groups[0]["params"]]
        torch.stack(outputs).sum().backward()
        optimizer.step()

    return iteration


def work() -> None:
    """Serve measurements: read a line with a case, or with a pause, and answer with the times of steps."""
    step: Any = None
    for line in sys.stdin:
        what = json.loads(line)
        if "make" in what:
            step = None  # frees the memory first
            step = (training if what["training"] else stepping)(**what["make"])
            for _ in range(3):
                step()
        end, times, cpu = perf_counter() + what["seconds"], [], process_time()
        while perf_counter() < end:
            if what["pause"]:  # a sleep of 0 takes 75 us, too
                sleep(what["pause"])
            start = perf_counter()
            step()
            times.append(perf_counter() - start)
        print(json.dumps([times, process_time() - cpu]), flush=True)


class Worker:
    """A process that measures one contender."""

    def __init__(self, tree: Path, rival: str, threads: int) -> None:
        env = {**os.environ, "PYTHONPATH": str(tree)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.settings = {"rival": rival, "threads": threads}

    def ask(self, **what: Any) -> tuple[list[float], float]:
        """Have it measure, and return the times of steps, and the processor time that it used."""
        pipe_in: Any = self.process.stdin
        pipe_out: Any = self.process.stdout
        print(json.dumps(what), file=pipe_in, flush=True)
        times, cpu = json.loads(pipe_out.readline())
        return times, cpu


@contextmanager
def burning(count: int) -> Iterator[list[int]]:
    burners = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(count)]
    try:
        yield [burner.pid for burner in burners]
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def busy(pids: list[int]) -> float:
    """Return the seconds that processors have worked for other processes, or 0 if nobody says."""
    try:
        user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
        ours = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in pids]
    except OSError:
        return 0.0
    return (user + nice + system + irq + soft - sum(int(t) for of in ours for t in of)) / os.sysconf("SC_CLK_TCK")


def one_round(workers: dict[str, Worker], burners: list[int], pause: float) -> tuple[dict[str, list[float]], bool]:
    """Return the times of steps of each contender, and whether nobody else used the processors."""
    times, quiet = {}, True
    for name, worker in workers.items():
        before, start = busy(burners), perf_counter()
        times[name], cpu = worker.ask(pause=pause, seconds=SECONDS)
        quiet &= busy(burners) - before - cpu < OTHERS * (perf_counter() - start)
    return times, quiet


def measured(workers: dict[str, Worker], burners: int, pause: float) -> tuple[dict[str, list[float]], str]:
    """Return the times of steps of each contender, and how many rounds were quiet."""
    rounds = []
    with burning(burners) as pids:
        while len(rounds) < MOST and sum(quiet for _, quiet in rounds) < WANTED:
            rounds.append(one_round(workers, pids, pause))
    good = [times for times, quiet in rounds if quiet]
    used = good if len(good) >= 3 else [times for times, _ in rounds]
    return {name: [t for times in used for t in times[name]] for name in workers}, f"{len(good)} of {len(rounds)}"


def main() -> None:
    with_torch = importlib.util.find_spec("torch") is not None
    contenders = {"one thread": Worker(HERE, "fastvar", 1), "this": Worker(HERE, "fastvar", 2)}
    for tree in sys.argv[1:]:
        contenders[Path(tree).name] = Worker(Path(tree), "fastvar", 2)
    if with_torch:
        contenders["torch fused"] = Worker(HERE, "torch", 2)
    names = [f"{name}: mean, p90" for name in contenders]
    table = Table("variables", "", "burners", "pause", "quiet", *names)
    for count, size in CASES:
        made = None
        for what, burners, pause in SITUATIONS if with_torch else SITUATIONS[:-1]:
            for worker in contenders.values() if what != made else ():
                case = {**worker.settings, "count": count, "size": size}
                worker.ask(make=case, training=bool(what), pause=0, seconds=0)
            made = what
            times, quiet = measured(contenders, burners, pause)
            alone = mean(times["one thread"])
            row = [f"{mean(t) / alone:.2f}, {quantiles(t, n=10)[-1] / alone:.2f}" for t in times.values()]
            row[0] = f"{alone * 1e6:.0f} us, " + row[0].split(", ")[1]
            table.add_row(f"{count} x {size:,}", what, str(burners), f"{pause * 1e3:.0f} ms", quiet, *row)
    Console(width=160).print(table)
    for worker in contenders.values():
        worker.process.kill()
        worker.process.wait()


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
