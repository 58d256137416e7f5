"""Variables of 16 bits on ranks, with and without masters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd
from fastvar.checkpoint.sets import CheckpointFile
from tests.support.cases import CASES, Case

SHAPES = {"kernel": (30, 70), "bias": (9,), "table": (20, 256), "wide": (2100,), "none": (0,)}
DTYPES = {"wide": np.float32}


def network(dtype: str) -> list[fv.Variable]:
    random = np.random.default_rng(0)
    return [
        fv.Variable(random.normal(size=shape), name=name, dtype=DTYPES.get(name, dtype))
        for name, shape in SHAPES.items()
    ]


def gradients(step: int, number: int, sparse: bool) -> list[Any]:
    random = np.random.default_rng([step, number])
    found: list[Any] = [random.normal(size=shape).astype(np.float32) for shape in SHAPES.values()]
    if sparse:
        found[2] = fv.IndexedSlices(found[2][:3], [number, 7, number])
    return found


def steps(
    optimizer: fd.Distributed, net: list[fv.Variable], begin: int, end: int, sparse: bool = False
) -> list[bytes]:
    for step in range(begin, end):
        for number in optimizer.micro_batches():
            optimizer.add(gradients(step, number, sparse))
        optimizer.step()
    masters = [v.master for v in net if v.master is not None]
    return [v.numpy().tobytes() for v in net] + [master.tobytes() for master in masters]


def built(
    world: fd.World, make: Any, dtype: str, total: int, order: str = "tree", sparse: bool = False, **options: Any
) -> tuple[fd.Distributed, list[fv.Variable]]:
    net = network(dtype)
    optimizer = fd.Distributed(make(**options), world, total, order, compare_every=1)
    optimizer.build(net, sparse=[net[2]] if sparse else [])
    return optimizer, net


@pytest.mark.parametrize("case", [case for case in CASES if "master" in type(case.make()).parameters], ids=str)
def test_every_rule_with_and_without_masters(case: Case) -> None:
    for k, (dtype, master) in enumerate([("bfloat16", True), ("bfloat16", False), ("float16", True)]):
        total, order = ((4, "tree"), (3, "sequence"), (5, "tree"))[(CASES.index(case) + k) % 3]

        def program(
            world: fd.World, t: int = total, o: str = order, d: str = dtype, m: bool = master
        ) -> list[bytes]:
            return steps(*built(world, case.make, d, t, o, master=m), 0, 2)

        (one,) = fd.simulate(1, program)
        assert fd.simulate(3, program) == [one] * 3
        if order == "sequence":
            net = network(dtype)
            plain = case.make(master=master, gradient_accumulation_steps=total)
            plain.build(net)
            for step in range(2):
                for number in range(total):
                    plain.apply(gradients(step, number, False), net)
            masters = [v.master for v in net if v.master is not None]
            assert one == [v.numpy().tobytes() for v in net] + [each.tobytes() for each in masters]


@pytest.mark.parametrize("master", [True, False])
def test_sparse_rows(master: bool) -> None:
    def program(world: fd.World) -> list[bytes]:
        return steps(*built(world, fv.optimizers.Adam, "bfloat16", 4, sparse=True, master=master), 0, 3, True)

    (one,) = fd.simulate(1, program)
    assert fd.simulate(3, program) == [one] * 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_continues_on_other_numbers_of_ranks(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"

    def program(world: fd.World, first: int, last: int) -> list[bytes]:
        optimizer, net = built(world, fv.optimizers.AdamW, dtype, 4)
        checkpoint = fd.Checkpoint(net, optimizer=optimizer)
        if first:
            checkpoint.restore(path)
        result = steps(optimizer, net, first, last)
        checkpoint.save(path, overwrite=True)
        return result

    expected = fd.simulate(1, lambda world: program(world, 0, 4))[0]
    for before, after in ((3, 2), (1, 4), (4, 1)):
        fd.simulate(before, lambda world: program(world, 0, 2))
        assert fd.simulate(after, lambda world: program(world, 2, 4)) == [expected] * after


def test_masters_are_saved_by_those_who_update_them(tmp_path: Path) -> None:
    """And restored under other names."""
    path = tmp_path / "model.h5"

    def program(world: fd.World, saves: bool) -> list[bytes]:
        optimizer, net = built(world, fv.optimizers.Adam, "bfloat16", 4)
        if saves:
            steps(optimizer, net, 0, 1)
            fd.Checkpoint(net, optimizer=optimizer).save(path)
            return steps(optimizer, net, 1, 2)
        for v in net:
            v._name = f"new/{v.name}"
        checkpoint = fd.Checkpoint(net, optimizer=optimizer)
        checkpoint.restore(path, name_map={"new": ""})
        return steps(optimizer, net, 1, 2)

    expected = fd.simulate(3, lambda world: program(world, True))
    assert fd.simulate(2, lambda world: program(world, False)) == expected[:2]
    with CheckpointFile(path) as file:
        masters = [name for name in file.entries if name.endswith(".master") and file.entries[name].length]
        assert masters
        assert all(file.is_cut(name) for name in masters)


def test_weights_that_a_user_writes() -> None:
    """What is written on all ranks counts, as in one process; and so does a master that is made anew."""

    def program(world: fd.World) -> list[bytes]:
        optimizer, net = built(world, fv.optimizers.Adam, "bfloat16", 2)
        steps(optimizer, net, 0, 1)
        net[0].assign(np.full(net[0].shape, 0.3))
        net[3][...] = 1.0
        net[1]._renew_master()
        return steps(optimizer, net, 1, 3)

    def plain() -> list[bytes]:
        net = network("bfloat16")
        optimizer = fv.optimizers.Adam(gradient_accumulation_steps=2)
        optimizer.build(net)
        for step in range(3):
            for number in range(2):
                optimizer.apply(gradients(step, number, False), net)
            if step == 0:
                net[0].assign(np.full(net[0].shape, 0.3))
                net[3][...] = 1.0
                net[1]._renew_master()
        masters = [v.master for v in net if v.master is not None]
        return [v.numpy().tobytes() for v in net] + [master.tobytes() for master in masters]

    (one,) = fd.simulate(1, program)
    assert one == plain()
    assert fd.simulate(3, program) == [one] * 3


def test_ranks_get_masters_of_rank_0() -> None:
    """Also those that an earlier optimizer has made."""

    def program(world: fd.World) -> list[bytes]:
        net = network("bfloat16")
        fv.optimizers.SGD(0.1 + world.rank).apply(gradients(0, 0, False), net)
        optimizer = fd.Distributed(fv.optimizers.Adam(), world, 2)
        optimizer.build(net)
        return [v.master.tobytes() for v in net if v.master is not None]

    first, *others = fd.simulate(3, program)
    assert others == [first] * 2


def test_float16_needs_a_master() -> None:
    with fd.world() as world, pytest.raises(ValueError, match="is float16, which needs master=True"):
        built(world, fv.optimizers.Adam, "float16", 2, master=False)
