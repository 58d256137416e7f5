"""A compiled plan that is given bad arguments raises an error, and never crashes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from fastvar import kernels
from fastvar.kernels import reference

MODULES = {**{isa: kernels.load(isa)[1] for isa in kernels.supported()}, "reference": reference}
f4 = np.float32


def readonly(array: Any) -> Any:
    array.flags.writeable = False
    return array


def plan_of(module: Any, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "owner": "test",
        "rule": module.RULES["momentum"],
        "names": ["a", "b"],
        "weights": [np.zeros(5, f4), np.zeros(3, np.float64)],
        "slots": [[np.zeros(5, f4)], [np.zeros(3, np.float64)]],
        "groups": [0, 1],
        "averages": None,
    }
    return module.Plan(**{**arguments, **changes})


BAD_PLAN: list[dict[str, Any]] = [
    {"names": ["a"]},
    {"names": []},
    {"weights": [np.zeros(5, f4)]},
    {"weights": []},
    {"weights": None},
    {"weights": [1, 2]},
    {"weights": ["a", "b"]},
    {"weights": [None, None]},
    {"weights": [np.zeros(5, f4), np.zeros(4, np.float64)]},
    {"weights": [np.zeros(5, np.float64), np.zeros(3, np.float64)]},
    {"weights": [np.zeros(5, object), np.zeros(3, np.float64)]},
    {"weights": [np.zeros(10, f4)[::2], np.zeros(3, np.float64)]},
    {"weights": [readonly(np.zeros(5, f4)), np.zeros(3, np.float64)]},
    {"weights": [np.zeros(5, ">f4"), np.zeros(3, np.float64)]},
    {"slots": [[], []]},
    {"slots": [[np.zeros(5, f4)] * 2, [np.zeros(3)] * 2]},
    {"slots": [[np.zeros(5, f4)], [None]]},
    {"slots": [[np.zeros(5, f4)], [np.zeros((3, 1))]]},
    {"slots": [[np.zeros(5, f4)], [[0.0, 0.0, 0.0]]]},
    {"slots": None},
    {"groups": [0]},
    {"groups": [0, -1]},
    {"groups": [0, 2]},
    {"groups": [0, 2**31]},
    {"groups": [0, 2**62]},
    {"groups": [0, 2**70]},
    {"groups": [0, "x"]},
    {"groups": [0, None]},
    {"averages": [None]},
    {"averages": [None, np.zeros(2)]},
    {"averages": [1, 2]},
]


@pytest.mark.parametrize("isa", MODULES)
@pytest.mark.parametrize("changes", BAD_PLAN, ids=lambda row: f"{row!r:.60}")
def test_plan_refuses_wrong_parts(isa: str, changes: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError)):
        plan_of(MODULES[isa], **changes)


@pytest.mark.parametrize("isa", kernels.supported())
@pytest.mark.parametrize("rule", [None, "momentum", 3, reference.RULES["momentum"]])
def test_compiled_plan_refuses_what_is_no_compiled_rule(isa: str, rule: Any) -> None:
    with pytest.raises(TypeError):
        plan_of(MODULES[isa], rule=rule)
    with pytest.raises((TypeError, ValueError)):
        plan_of(MODULES[isa], rule=type(MODULES[isa].RULES["momentum"])())


GOOD = (0.9, -0.1, 1.0, 0.0)
BAD_SCALARS: list[Any] = [
    (), [GOOD], [GOOD] * 3, [(), ()], [GOOD, GOOD[:3]], [GOOD, (*GOOD, 1.0)], None, 3, [1.0, 2.0], [None, None],
    ["abcd", "abcd"], [GOOD, (1, 2, 3, None)], [GOOD, (1, 2, 3, 1j)], {"a": GOOD, "b": GOOD}, range(2),
]  # fmt: skip


@pytest.mark.parametrize("isa", kernels.supported())
def test_plan_refuses_wrong_scalars_and_orders(isa: str) -> None:
    plan = plan_of(MODULES[isa])
    for act in (lambda: plan.run([GOOD] * 2), lambda: plan.sums_of_squares(True)):
        with pytest.raises(RuntimeError, match="bind gradients first"):
            act()
    grads = [np.ones(5, f4), np.ones(3)]
    for bad in (
        [],
        grads[:1],
        [*grads, None],
        grads[::-1],
        [1, 2],
        None,
        7,
        ["x", "y"],
        [np.ones(5, object)] * 2,
    ):
        with pytest.raises((TypeError, ValueError)):
            plan.bind(bad)
        with pytest.raises(RuntimeError, match="bind gradients first"):
            plan.run([GOOD] * 2)
    plan.bind(grads)
    for scalars in BAD_SCALARS:
        with pytest.raises((TypeError, ValueError, KeyError)):
            plan.run(scalars)
        plan.bind(grads)
    plan.run([GOOD] * 2)
    with pytest.raises(RuntimeError, match="bind gradients first"):
        plan.run([GOOD] * 2)


@pytest.mark.parametrize("isa", kernels.supported())
def test_plan_survives_any_number_of_threads(isa: str) -> None:
    plan = plan_of(MODULES[isa])
    for threads in (-5, 0, 1, 2**31 - 1):
        plan.bind([np.ones(5, f4), np.ones(3)])
        plan.sums_of_squares(True, threads)
        plan.run([GOOD] * 2, threads)
    plan.bind([np.ones(5, f4), np.ones(3)])
    with pytest.raises(OverflowError):
        plan.run([GOOD] * 2, 2**40)


@pytest.mark.parametrize("isa", kernels.supported())
def test_plan_that_is_bound_within_bind_stays_whole(isa: str) -> None:
    plan = plan_of(MODULES[isa])

    class Rebinds:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            with pytest.raises(ValueError, match="2 gradients"):
                plan.bind([])
            return np.ones(5, f4)

    plan.bind([Rebinds(), np.ones(3)])
    plan.run([GOOD] * 2)


@pytest.mark.parametrize("isa", kernels.supported())
@pytest.mark.parametrize("method", ["bind", "run", "sums_of_squares", "share_scalars"])
def test_plan_that_is_used_within_a_run_stays_whole(isa: str, method: str) -> None:
    plan = plan_of(MODULES[isa])
    arguments: dict[str, Any] = {"bind": ([None, None],), "run": ([GOOD] * 2,), "sums_of_squares": (True,)}
    refused = []

    class Uses:
        def __float__(self) -> float:
            with pytest.raises(RuntimeError, match="in use"):
                getattr(plan, method)(*arguments.get(method, ([0, 0],)))
            refused.append(method)
            return 0.5

    plan.bind([np.ones(5, f4), np.ones(3)])
    plan.run([[Uses() for _ in GOOD], GOOD])
    assert refused
    with pytest.raises(RuntimeError, match="bind gradients first"):
        plan.run([GOOD] * 2)


@pytest.mark.parametrize("isa", kernels.supported())
def test_scalars_of_a_refused_run_change_nothing(isa: str) -> None:
    """A second thread is refused while the first runs; the scalars that it gave must not reach that run."""
    module = MODULES[isa]
    w = np.zeros(1 << 21, f4)
    rule = module.RULES["gradient_descent"]
    plan = module.Plan("test", rule, ["w"], [w], [[]], [0])
    g, before = np.ones_like(w), w.copy()
    ended = threading.Event()

    def disturb() -> None:
        while not ended.is_set():
            with contextlib.suppress(RuntimeError):
                plan.sums([[-3.0] * len(rule.scalars)])

    def bind_and_run() -> bool:
        with contextlib.suppress(RuntimeError):  # the other was first
            plan.bind([g])
            plan.run([[1.0] * len(rule.scalars)])
            return True
        return False

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(20):
            while not bind_and_run():
                pass
            assert np.unique(before - w).tolist() == [1.0]
            before = w.copy()
    finally:
        ended.set()
        thread.join()


EVIL = """
import numpy as np
from fastvar import kernels

class Evil:  # empties the list that is being read
    def __float__(self):
        victim.clear()
        return 1.0

for isa in kernels.supported():
    module = kernels.load(isa)[1]
    for rows in (True, False):
        w = [np.zeros(5, np.float32) for _ in range(200)]
        plan = module.Plan("test", module.RULES["momentum"], ["w"] * 200, w, [[x.copy()] for x in w], range(200))
        plan.bind([np.ones(5, np.float32)] * 200)
        first = [Evil(), 1.0, 1.0, 1.0]
        scalars = [first] + [[1.0] * 4 for _ in range(199)]
        victim = first if rows else scalars
        try:
            plan.run(scalars)
        except Exception as error:
            print(type(error).__name__)
        else:
            print("ran")
"""


def test_plan_survives_scalars_that_change_while_read() -> None:
    done = subprocess.run([sys.executable, "-c", EVIL], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2 * len(kernels.supported())
