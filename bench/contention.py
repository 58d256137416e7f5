"""Steps of Adam while other processes want the processors, too.

    python bench/contention.py [TREE ...]

Each TREE is another working tree of fastvar with built kernels, such as that of an older commit. All take
turns, each in a process of its own: this tree on 2 threads and on one, each TREE on 2, and PyTorch's fused Adam
on 2 if it is installed. Burners are processes that only count. Figures are means and 90th percentiles of the
time of a step, in times of the mean of one thread in the same rounds. "others" is how much of one processor was
used by processes that are not ours, where that can be read (Linux): above 5 %, look at the figures with care.
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
SITUATIONS = ((0, 0.0), (1, 0.0), (2, 0.0), (0, 0.01))  # burners, seconds between steps
ROUNDS, SECONDS = 7, 0.3
BURNER = "import time\nend = time.perf_counter() + 600\nwhile time.perf_counter() < end: pass"


def stepping(rival: str, threads: int, count: int, size: int) -> Callable[[], object]:
    """Return a step of Adam."""
    if rival == "torch":
        import torch

        torch.set_num_threads(threads)
        params = [torch.nn.Parameter(torch.ones(size)) for _ in range(count)]
        for p in params:
            p.grad = torch.full((size,), 0.1)
        return torch.optim.Adam(params, fused=True).step
    import numpy as np

    import fastvar as fv

    fv.set_num_threads(threads)
    weights = [fv.Variable(np.ones(size, np.float32)) for _ in range(count)]
    gradients = [np.full(size, 0.1, np.float32) for _ in range(count)]
    optimizer = fv.optimizers.Adam()
    optimizer.build(weights)
    return lambda: optimizer.apply(gradients)


def work() -> None:
    """Serve measurements: read a line with a case, or with a pause, and answer with the times of steps."""
    step: Any = None
    for line in sys.stdin:
        what = json.loads(line)
        if "make" in what:
            step = None  # frees the memory first
            step = stepping(**what["make"])
            for _ in range(3):
                step()
        end, times, cpu = perf_counter() + what["seconds"], [], process_time()
        while perf_counter() < end:
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
def burning(count: int) -> Iterator[None]:
    burners = [subprocess.Popen([sys.executable, "-c", BURNER]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def busy() -> float:
    """Return the seconds for which processors have been busy since the machine started, or 0 if nobody says."""
    try:
        user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    except OSError:
        return 0.0
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def measured(workers: dict[str, Worker], burners: int, pause: float) -> tuple[dict[str, list[float]], float]:
    """Return the times of steps of each contender, and what others used of a processor."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    others = []
    with burning(burners):
        for _ in range(ROUNDS):
            for name, worker in workers.items():
                before, start = busy(), perf_counter()
                took, cpu = worker.ask(pause=pause, seconds=SECONDS)
                times[name] += took
                others.append((busy() - before - cpu) / (perf_counter() - start))
    return times, max(0.0, mean(others))


def main() -> None:
    contenders = {"one thread": Worker(HERE, "fastvar", 1), "this": Worker(HERE, "fastvar", 2)}
    for tree in sys.argv[1:]:
        contenders[Path(tree).name] = Worker(Path(tree), "fastvar", 2)
    if importlib.util.find_spec("torch"):
        contenders["torch fused"] = Worker(HERE, "torch", 2)
    table = Table("variables", "burners", "pause", "others", *(f"{name}: mean, p90" for name in contenders))
    for count, size in CASES:
        for worker in contenders.values():
            worker.ask(make={**worker.settings, "count": count, "size": size}, pause=0, seconds=0)
        for burners, pause in SITUATIONS:
            times, others = measured(contenders, burners, pause)
            alone = mean(times["one thread"])
            row = [f"{mean(t) / alone:.2f}, {quantiles(t, n=10)[-1] / alone:.2f}" for t in times.values()]
            row[0] = f"{alone * 1e6:.0f} us, " + row[0].split(", ")[1]
            used = "" if burners else f"{others:.0%}"
            table.add_row(f"{count} x {size:,}", str(burners), f"{pause * 1e3:.0f} ms", used, *row)
    Console(width=160).print(table)
    for worker in contenders.values():
        worker.process.kill()
        worker.process.wait()


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()
