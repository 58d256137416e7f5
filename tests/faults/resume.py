"""Training runs that are killed repeatedly, and resumed each time from their checkpoints."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import fastvar as fv
from tests.faults.lab import folders, forked
from tests.support.cases import CASES
from tests.support.training import Training

STEPS = 12


def resumed_runs(kills: int) -> dict[str, Any]:
    """Kill a run of every optimizer several times. Return whether it ends like an undisturbed one."""
    counts = Counter[str]()
    with folders() as work:
        for case in CASES:
            folder = work / "run"

            def run(say: Callable[[str], None], case: Any = case, folder: Any = folder) -> None:
                say(" ")
                training = Training(case)
                with fv.CheckpointManager(training.checkpoint, folder, max_to_keep=2) as manager:
                    manager.restore_or_initialize()
                    counts_from = training.data["position"]
                    while training.data["position"] < STEPS:
                        training.train(1)
                        manager.save(blocking=False)
                say(f"{counts_from} {_digest(training)}")

            whole = Training(case)
            whole.train(STEPS)
            start = time.perf_counter()
            undisturbed = forked(run).text.split()
            seconds = time.perf_counter() - start
            shutil.rmtree(folder)
            for _ in range(kills):
                forked(run, kill_after=random.uniform(0, seconds))
            at, digest = forked(run).text.split()
            equal = {digest, undisturbed[1]} == {_digest(whole)}
            counts["equal" if equal else f"{case.id} differs"] += 1
            counts["resumed in the middle"] += int(at) > 0
            shutil.rmtree(folder)
    return {"counts": dict(counts), "errors": []}


def _digest(training: Training) -> str:
    return hashlib.sha256(repr(training.everything()).encode()).hexdigest()
