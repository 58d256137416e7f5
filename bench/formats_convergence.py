"""Final losses with slots in 16 and 8 bits, beside float32: `python -m bench.formats_convergence [name ...]`.

Two jobs (bench/formats_jobs.py) are trained with the same seeds and batches in every format of slots. A format
passes if the bound of its loss above float32's is below 0.3 of the spread of float32's losses over seeds. It is
the one-sided bound of 99 %, from the t distribution of paired differences. Rows begin with 3 or 10 seeds; where 3
are too few to pass, 10 are run.

Without names, all rows run (13 minutes on one core). Their losses replace those in runs/formats.json, from
which docs/formats.svg is drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import ml_dtypes
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import t as t_distribution

import fastvar as fv
from bench.formats_jobs import Digits, Zipf
from fastvar.formats import OF_SLOTS
from tests.support.nearest import nearest_rounding

LIMIT = 0.3  # of the spread
MANY, FEW = 10, 3  # seeds
ROOT = Path(__file__).parent.parent
JOBS: dict[str, Any] = {"digits": Digits, "Zipf": Zipf}


class Row(NamedTuple):
    """An optimizer with its options, and its learning rate on each job."""

    optimizer: str
    digits: float
    zipf: float
    options: Mapping[str, Any] = {}
    seeds: int = FEW
    constant: bool = False  # the learning rate stays; otherwise it falls to 0 along a cosine
    steps: int = 1500
    nearest: bool = False  # round slots to nearest, the control

    @property
    def name(self) -> str:
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        return f"{self.optimizer}{options}{', to nearest' * self.nearest}"

    def make(self, rate: float, **more: Any) -> fv.Optimizer:
        given: Any = rate if self.constant else fv.schedules.CosineDecay(rate, self.steps)
        return getattr(fv.optimizers, self.optimizer)(given, **self.options, **more)


ROWS = [
    Row("Adam", 0.002, 0.01, seeds=MANY),
    Row("AdamW", 0.002, 0.01, {"weight_decay": 0.01}, seeds=MANY),
    Row("Lion", 0.0003, 0.001, seeds=MANY),
    Row("SGD", 0.05, 0.5, {"momentum": 0.9}, seeds=MANY),
    Row("Adagrad", 0.02, 0.2, seeds=MANY),
    Row("Lamb", 0.002, 0.01, seeds=MANY),
    Row("Adam", 0.002, 0.01, {"amsgrad": True}),
    Row("AdEMAMix", 0.002, 0.01),
    Row("AdaBelief", 0.002, 0.01),
    Row("Adadelta", 1.0, 10.0),
    Row("Adafactor", 0.01, 0.03),
    Row("Adamax", 0.002, 0.01),
    Row("Adan", 0.002, 0.01),
    Row("Adopt", 0.002, 0.01),
    Row("Ftrl", 0.2, 2.0, constant=True),
    Row("Lars", 1.0, 1.0),
    Row("Muon", 0.002, 0.01),
    Row("Nadam", 0.002, 0.01),
    Row("Prodigy", 0.03, 1.0),
    Row("RAdam", 0.002, 0.01),
    Row("RMSprop", 0.001, 0.005),
    Row("RMSprop", 0.0003, 0.002, {"momentum": 0.9}),
    Row("RMSprop", 0.0003, 0.002, {"momentum": 0.9, "centered": True}),
    Row("ScheduleFreeAdamW", 0.002, 0.01, constant=True),
    Row("Yogi", 0.002, 0.01),
    Row("Adam", 0.002, 0.01, seeds=MANY, nearest=True),
]


class Kind(NamedTuple):
    """What is stored in fewer bits."""

    slot_dtype: Any = None
    master: bool | None = None  # of weights in bfloat16; None: weights are in float32


KINDS = {kind: Kind(kind) for kind in OF_SLOTS} | {
    "with a master": Kind(master=True),
    "without": Kind(master=False),
}


class Losses(NamedTuple):
    """The final losses of a row on a job in a kind of `KINDS`, and in float32, for each seed."""

    row: str
    job: str
    kind: str
    losses: list[float]
    float32: list[float]

    @property
    def spread(self) -> float:
        return float(np.std(self.float32, ddof=1))

    @property
    def differences(self) -> Any:
        return np.subtract(self.losses, self.float32)

    @property
    def bound(self) -> float:
        """The one-sided 99 % bound of the difference, as a part of the spread."""
        n = len(self.losses)
        error = float(np.std(self.differences, ddof=1)) / n**0.5
        bound: float = self.differences.mean() + t_distribution.ppf(0.99, n - 1) * error
        return bound / self.spread


def final_loss(row: Row, job: str, kind: Kind, seed: int) -> float:
    """Train, and return the final loss. Losses and gradients are of the weights as they are stored."""
    with nearest_rounding() if row.nearest and kind != Kind() else nullcontext():
        trained = JOBS[job](seed)
        rate = row.digits if job == "digits" else row.zipf
        more = {} if kind.master is None else {"master": kind.master}
        optimizer = row.make(rate, slot_dtype=kind.slot_dtype, slot_dtype_min_size=0, seed=seed, **more)
        stored = trained.variables
        if kind.master is not None:
            stored = [fv.Variable(v.value, dtype=ml_dtypes.bfloat16) for v in stored]
        optimizer.build(stored)
        for _ in range(row.steps):
            for v, w in zip(trained.variables, stored, strict=True):
                v.assign(w.value.astype(np.float32))
            optimizer.apply(trained.gradients(), stored)
        for v, w in zip(trained.variables, stored, strict=True):
            v.assign(w.value.astype(np.float32))
        loss: float = trained.loss()
        return loss


def compared(row: Row, job: str, kinds: Sequence[str]) -> list[Losses]:
    """Return the losses in each kind."""
    found: dict[str, list[float]] = {kind: [] for kind in ("", *kinds)}
    for seeds in sorted({row.seeds, MANY}):
        for name, losses in found.items():
            kind = KINDS.get(name, Kind())
            losses += [final_loss(row, job, kind, seed) for seed in range(len(losses), seeds)]
        of = [Losses(row.name, job, kind, found[kind], found[""]) for kind in kinds]
        if all(one.bound < LIMIT for one in of):
            break
    return of


def stored(row: Row) -> str:
    """Return the names of the slots, and which of them stay exact."""
    variables = [fv.Variable(np.zeros(shape, np.float32)) for shape in ((16, 16), 256)]
    optimizer = row.make(row.digits, slot_dtype="8bit", slot_dtype_min_size=0)
    optimizer.build(variables)
    pairs = [(name, v) for name in optimizer.slots for v in variables if optimizer.has_slot(name, v)]
    kinds = {name: isinstance(optimizer.slot(v, name), fv.Variable) for name, v in pairs}
    return ", ".join(name + " (exact)" * exact for name, exact in kinds.items())


def table_of(rows: Sequence[Row], found: Sequence[Losses]) -> Table:
    table = Table("optimizer", "slots", "job", "seeds", "float32", "spread", "kind", "difference", "bound", "")
    slots = {row.name: stored(row) for row in rows}
    for one in found:
        figures = f"{np.mean(one.float32):.4g}", f"{one.spread:.2g}", one.kind
        table.add_row(
            one.row,
            slots[one.row],
            one.job,
            str(len(one.losses)),
            *figures,
            f"{one.differences.mean():+.1e}",
            f"{one.bound:.3f}",
            "" if one.bound < LIMIT else "above",
        )
    return table


def draw(found: Sequence[Losses], target: Path, kinds: Sequence[str]) -> None:
    """Draw the bounds, a line for each optimizer."""
    names = list(dict.fromkeys(one.row for one in found))[::-1]
    figure = Figure(figsize=(8, 1.4 + 0.2 * len(names)), layout="constrained")
    axes = figure.subplots()
    for kind, colour in zip(kinds, ("#4292c6", "#ee854a"), strict=True):
        for job, marker in zip(JOBS, "ox", strict=True):
            chosen = [one for one in found if (one.kind, one.job) == (kind, job)]
            places = [names.index(one.row) for one in chosen]
            label = f"{kind}, {job}"
            axes.scatter([one.bound for one in chosen], places, 22, colour, marker=marker, label=label)
    axes.axvline(LIMIT, color="black", linewidth=1)
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_xlabel("99 % bound of (final loss - float32's) / spread of float32's over seeds", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastvar"}):  # text stays text, ids repeat
        figure.savefig(target, metadata={"Date": None})


def read(path: Path) -> list[Losses]:
    return [Losses(**one) for one in json.loads(path.read_text())] if path.exists() else []


def main(names: Sequence[str]) -> None:
    fv.set_num_threads(1)
    path = ROOT / "runs" / "formats.json"
    path.parent.mkdir(exist_ok=True)
    order = [row.name for row in ROWS]
    for row in ROWS:
        if names and not {row.name, row.optimizer} & {*names}:
            continue
        found = [each for job in JOBS for each in compared(row, job, OF_SLOTS)]
        others = [one for one in read(path) if one.row in order and one.row != row.name]
        every = sorted([*others, *found], key=lambda one: order.index(one.row))
        path.write_text(json.dumps([one._asdict() for one in every]))
        print(row.name, *(f"{one.kind} {one.job} {one.bound:.3f}" for one in found), sep="; ", flush=True)
    found = [one for one in read(path) if one.row in order]
    Console(width=160).print(table_of(ROWS, found))
    draw(found, ROOT / "docs" / "formats.svg", OF_SLOTS)


if __name__ == "__main__":
    main(sys.argv[1:])
