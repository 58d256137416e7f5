"""What ranks send: only what has a gradient on some rank."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd
from fastvar.distributed.meeting import Arrays


def counted(world: fd.World) -> list[tuple[str, int]]:
    """Note what a rank sends from now on, and how many bytes."""
    sent: list[tuple[str, int]] = []
    meeting: Any = world.meeting
    exchange = meeting.exchange

    def noting(out: Mapping[int, Arrays], into: Mapping[int, Arrays], what: str) -> None:
        sent.append((what, sum(array.nbytes for arrays in out.values() for array in arrays)))
        exchange(out, into, what)

    meeting.exchange = noting
    return sent


@pytest.mark.parametrize("whole", [False, True])
def test_frozen_variables_do_not_travel(whole: bool) -> None:
    """Nor do those of which no rank has a gradient; and all come again when they have one."""
    n = 1 << 15

    def program(world: fd.World) -> list[int]:
        net = [fv.Variable(np.zeros(n, np.float32), name=name) for name in "abcd"]
        optimizer = fd.Distributed((fv.optimizers.Lamb if whole else fv.optimizers.Adam)(0.1), world, 4)
        optimizer.build(net)
        sent, found = counted(world), []
        for frozen, absent in (((), ()), ((0, 2), ()), ((), (1,)), ((0,), (1,)), ((), ())):
            for i, v in enumerate(net):
                v.trainable = i not in frozen
            sent.clear()
            for number in optimizer.micro_batches():
                optimizer.add([None if i in absent else np.full(n, number, np.float32) for i in range(4)])
            optimizer.step()
            found.append(sum(count for _, count in sent))
        return found

    of_ranks = fd.simulate(4, program)
    totals = [sum(counts) for counts in zip(*of_ranks, strict=True)]
    each = 2 * 3 * 4 * n  # bytes of one variable: three of four send a sum, and one its weights to three
    assert totals == [4 * each, 2 * each, 3 * each, 2 * each, 4 * each]


def test_average_of_a_variable_without_gradient() -> None:
    """All ranks have the same weights also after averages have overwritten them."""

    def program(world: fd.World) -> bytes:
        net = [fv.Variable(np.ones(2000, np.float32), name=name) for name in "ab"]
        optimizer = fd.Distributed(
            fv.optimizers.SGD(0.5, use_ema=True, ema_overwrite_frequency=2), world, 2, compare_every=1
        )
        optimizer.build(net)
        for step in range(4):
            for number in optimizer.micro_batches():
                optimizer.add([np.full(2000, number, np.float32), None if step % 2 else np.ones(2000, np.float32)])
            optimizer.step()
        return b"".join(v.numpy().tobytes() for v in net)

    (one,) = {*fd.simulate(3, program)}
    assert one == fd.simulate(1, program)[0]
