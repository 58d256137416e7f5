"""Train with every optimizer and every kind of option and format, and print a digest of each run.

    python tools/aarch64/digest.py CHECKPOINT

Processors that keep docs/numerics.md print the same lines, and write the same numbers to the checkpoint. What that
page says may differ is left out: Muon, Ftrl with another power, and payloads of NaNs. So are NumPy's normal
numbers, which are made with logarithms: all numbers here are drawn as 53 bits, and scaled by powers of 2.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import fastvar as fv
import fastvar.distributed as fd
from tests.support.cases import CASES, Case, contents

COMPARED = [case for case in CASES if case.optimizer != "Muon" and case.id != "ftrl-power"]
SHAPES = [(7, 5), (5,), (), (70, 31), (0, 3), (40, 256)]
LARGE = (70_001,)  # enough for several threads
STEPS = 4
SPECIAL = np.array([0.0, -0.0, 1e-40, -1e-44, 5e-324, np.inf, -np.inf, np.nan, 3e38, 1.9e-34])
AVERAGED = {"weight_decay": 0.3, "use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3}


@dataclass(frozen=True)
class Setup:
    """Options of an optimizer, and what it is given."""

    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    gradients: str = "float32"  # their format
    rows: bool = False  # sparse gradients of matrices
    spread: int = 3  # gradients differ by as many powers of 2
    special: bool = False  # infinities, NaNs and denormals among the gradients
    bounded: bool = False  # with penalties and a constraint


SETUPS = {
    "float32": Setup(),
    "float64": Setup(dtype="float64", gradients="float64"),
    "float64 from float32": Setup({"clipvalue": 0.1}, dtype="float64"),
    "gradients of bfloat16": Setup(gradients="bfloat16"),
    "gradients of float16": Setup({"clipnorm": 0.7}, gradients="float16"),
    "clipnorm": Setup({**AVERAGED, "clipnorm": 0.7}),
    "clipvalue": Setup({**AVERAGED, "clipvalue": 0.1}),
    "global_clipnorm": Setup({**AVERAGED, "global_clipnorm": 0.7, "gradient_accumulation_steps": 3}),
    "adaptive_clipnorm": Setup({"adaptive_clipnorm": 0.01, "loss_scale_factor": 7.0}),
    "penalties, box": Setup(AVERAGED, bounded=True),
    "slots of bfloat16": Setup({"slot_dtype": "bfloat16", "slot_dtype_min_size": 0}),
    "slots of 8 bits": Setup({"slot_dtype": "8bit", "slot_dtype_min_size": 0, "clipnorm": 0.7}),
    "bfloat16, master": Setup(dtype="bfloat16", gradients="bfloat16"),
    "bfloat16": Setup({"master": False, "slot_dtype": "bfloat16", "slot_dtype_min_size": 0}, dtype="bfloat16"),
    "float16, master": Setup({"global_clipnorm": 0.7}, dtype="float16", gradients="float16"),
    "rows": Setup({"clipnorm": 0.7}, rows=True),
    "rows, averaged": Setup({**AVERAGED, "global_clipnorm": 0.7}, rows=True),
    "rows of bfloat16": Setup({"slot_dtype": "8bit"}, gradients="bfloat16", rows=True),
    "tiny and huge": Setup(spread=240),
    "special": Setup(special=True),
    "special, skipped": Setup({"nonfinite": "skip", **AVERAGED}, special=True),
}


def drawn(random: np.random.Generator, shape: tuple[int, ...], spread: int) -> Any:
    """Return random numbers of both signs."""
    return np.ldexp(2 * random.random(shape) - 1, random.integers(-spread // 2, spread // 2 + 1, shape))


def gradient(random: np.random.Generator, v: fv.Variable, setup: Setup, step: int) -> Any:
    dtype = np.dtype(getattr(ml_dtypes, setup.gradients, setup.gradients))
    rows = setup.rows and len(v.shape) == 2 and v.size > 0
    indices = random.integers(0, v.shape[0], 9) if rows else None  # with duplicates, in any order
    values = drawn(random, (9, *v.shape[1:]) if rows else v.shape, setup.spread)
    if setup.special and step % 2:
        values = np.where(random.random(values.shape) < 0.1, random.choice(SPECIAL, values.shape), values)
    values = np.asarray(values).astype(dtype)
    return fv.IndexedSlices(values, indices) if rows else values


def network(random: np.random.Generator, setup: Setup, shapes: list[tuple[int, ...]]) -> list[fv.Variable]:
    net = [fv.Variable(drawn(random, s, 2), dtype=setup.dtype, name=f"v{i}") for i, s in enumerate(shapes)]
    if setup.bounded:
        net[0].regularizer = fv.regularizers.L1L2(0.013, 0.07)
        net[3].constraint = fv.constraints.Box(-0.5, 0.25)
    return net


def trained(case: Case, setup: Setup, shapes: list[tuple[int, ...]]) -> tuple[fv.Optimizer, list[fv.Variable]]:
    random = np.random.default_rng(7)
    known = type(case.make()).parameters
    optimizer = case.make(**{name: value for name, value in setup.options.items() if name in known})
    net = network(random, setup, shapes)
    for step in range(STEPS):
        optimizer.apply([gradient(random, v, setup, step) for v in net], net)
    return optimizer, net


def on_ranks(case: Case, order: str) -> list[str]:
    """Train on three ranks, and return what each has then."""

    def program(world: fd.World) -> str:
        net = network(np.random.default_rng(7), Setup(), SHAPES)
        optimizer = fd.Distributed(case.make(global_clipnorm=0.7), world, 5, order)
        optimizer.build(net)
        for step in range(2):
            for number in optimizer.micro_batches():
                random = np.random.default_rng([step, number])
                optimizer.add([gradient(random, v, Setup(), step) for v in net])
            optimizer.step()
        return hashlib.sha256(b"".join(v.value.tobytes() for v in net)).hexdigest()

    return fd.simulate(3, program)


def runs() -> Any:
    """Yield the names of runs, and functions that return what each has computed."""

    def run(case: Case, setup: Setup, shapes: list[tuple[int, ...]]) -> Callable[[], list[str]]:
        return lambda: contents(*trained(case, setup, shapes))

    for case in COMPARED:
        for name, setup in SETUPS.items():
            if not (setup.rows and case.measures):  # these need whole gradients
                yield f"{case.id}, {name}", run(case, setup, SHAPES)
        yield f"{case.id}, large", run(case, SETUPS["clipnorm"], [LARGE])
    for case in COMPARED[::4]:
        for order in ("tree", "sequence"):
            yield f"{case.id}, {order} on 3 ranks", lambda c=case, o=order: on_ranks(c, o)


def main(checkpoint: str) -> None:
    fv.set_num_threads(3)
    whole = hashlib.sha256()
    with np.errstate(all="ignore"):
        for name, computed in runs():
            digest = hashlib.sha256("\n".join(computed()).encode()).hexdigest()[:16]
            whole.update(digest.encode())
            print(f"{name}: {digest}", flush=True)
        adam = next(case for case in COMPARED if case.id == "adam")
        optimizer, net = trained(adam, SETUPS["slots of 8 bits"], SHAPES)
        fv.Checkpoint(variables=net, optimizer=optimizer).save(checkpoint, overwrite=True)
    print(f"all: {whole.hexdigest()[:16]}")


if __name__ == "__main__":
    main(sys.argv[1])
