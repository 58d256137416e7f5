"""Saved on some ranks, continued on others: the bits of the uninterrupted run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd
from tests.support import ranks
from tests.support.cases import CASES, Case
from tests.support.ranks import TOTAL, steps

by_id = {case.id: case for case in CASES}


def prepared(world: fd.World, case: Case, options: dict[str, Any]) -> tuple[Any, Any, list[fv.Variable]]:
    net = ranks.network(options)
    optimizer = fd.Distributed(case.make(**ranks.taken(case, options)), world, TOTAL)
    optimizer.build(ranks.structured(net, options))
    return fd.Checkpoint(net, optimizer=optimizer, notes={"seen": 3}), optimizer, net


def save(world: fd.World, case: Case, options: dict[str, Any], path: Path) -> None:
    checkpoint, optimizer, _ = prepared(world, case, options)
    steps(optimizer, options, range(3))
    checkpoint.save(path)


def resume(world: fd.World, case: Case, options: dict[str, Any], path: Path) -> str:
    checkpoint, optimizer, net = prepared(world, case, options)
    if world.rank:  # what is not restored must not go unnoticed
        for v in net:
            v[...] = 7.0
    checkpoint.restore(path)
    steps(optimizer, options, range(3, 5))
    return ranks.digest(net)


def uninterrupted(world: fd.World, case: Case, options: dict[str, Any]) -> str:
    _, optimizer, net = prepared(world, case, options)
    steps(optimizer, options, range(5))
    return ranks.digest(net)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_optimizer_continues_on_other_ranks(case: Case, tmp_path: Path) -> None:
    k = CASES.index(case)
    first, second = [(2, 3), (3, 1), (1, 4), (4, 2)][k % 4]
    fd.simulate(first, lambda world: save(world, case, {}, tmp_path / "a.h5"))
    found = fd.simulate(second, lambda world: resume(world, case, {}, tmp_path / "a.h5"))
    assert {*found} == {ranks.alone(lambda world: uninterrupted(world, case, {}))}


@pytest.mark.parametrize("name", [name for name in ranks.OPTIONS if name != "frozen"])
@pytest.mark.parametrize("id_", ["adam", "muon"])
def test_every_option_continues_on_other_ranks(id_: str, name: str, tmp_path: Path) -> None:
    case, options = by_id[id_], ranks.OPTIONS[name]
    fd.simulate(3, lambda world: save(world, case, options, tmp_path / "a.h5"))
    found = fd.simulate(2, lambda world: resume(world, case, options, tmp_path / "a.h5"))
    assert {*found} == {ranks.alone(lambda world: uninterrupted(world, case, options))}


@pytest.mark.parametrize("first", [1, 2, 3, 4, 6])
def test_all_numbers_of_ranks(first: int, tmp_path: Path) -> None:
    case = by_id["amsgrad"]
    fd.simulate(first, lambda world: save(world, case, {}, tmp_path / "a.h5"))
    whole = ranks.alone(lambda world: uninterrupted(world, case, {}))
    for second in (1, 2, 3, 4, 6):
        assert {*fd.simulate(second, lambda world: resume(world, case, {}, tmp_path / "a.h5"))} == {whole}


@pytest.mark.parametrize("id_", ["adam", "adafactor", "muon", "prodigy"])
def test_one_process_reads_sets_and_ranks_read_its_files(id_: str, tmp_path: Path) -> None:
    case = by_id[id_]
    fd.simulate(3, lambda world: save(world, case, {}, tmp_path / "set.h5"))
    net, optimizer, notes = ranks.network({}), case.make(), {"seen": 0}
    optimizer.build(net)
    report = fv.Checkpoint(net, optimizer=optimizer, notes=notes).restore(tmp_path / "set.h5")
    assert not report.missing
    assert not report.skipped
    assert (optimizer.iterations, notes) == (3, {"seen": 3})
    fv.Checkpoint(net, optimizer=optimizer, notes=notes).save(tmp_path / "one.h5")
    whole = ranks.alone(lambda world: uninterrupted(world, case, {}))
    assert {*fd.simulate(4, lambda world: resume(world, case, {}, tmp_path / "one.h5"))} == {whole}


def test_each_rank_writes_its_share(tmp_path: Path) -> None:
    fd.simulate(4, lambda world: save(world, by_id["adam"], {}, tmp_path / "a.h5"))
    sizes = sorted(path.stat().st_size for path in tmp_path.iterdir() if "part" in path.name)
    assert len(sizes) == 4
    needed = 3 * sum(v.nbytes for v in ranks.network({}))
    assert needed / 4 < sizes[-1] < needed / 2 + 20_000  # with the tables of a file


def test_damage_is_an_error_on_all_ranks_and_changes_nothing(tmp_path: Path) -> None:
    case = by_id["adam"]
    fd.simulate(3, lambda world: save(world, case, {}, tmp_path / "a.h5"))
    (part,) = (path for path in tmp_path.iterdir() if ".part-2-" in path.name)
    data = bytearray(part.read_bytes())
    data[-5000] ^= 1
    part.write_bytes(data)
    errors: list[str] = []

    def program(world: fd.World) -> None:
        checkpoint, optimizer, net = prepared(world, case, {})
        before = ranks.digest(net)
        try:
            checkpoint.restore(tmp_path / "a.h5")
        except fv.CheckpointError as error:
            errors.append(str(error))
        assert ranks.digest(net) == before
        assert optimizer.iterations == 0

    fd.simulate(2, program)
    assert len(errors) == 2
    assert all(part.name in error for error in errors)


def test_a_rank_that_cannot_write_is_an_error_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, path = by_id["adam"], tmp_path / "a.h5"
    fd.simulate(2, lambda world: save(world, case, {}, path))
    written = [p for p in tmp_path.iterdir() if p.suffix != ".lock"]  # a lock says since when it is held
    before = {p.name: p.read_bytes() for p in written}
    assert len(before) == 3
    from fastvar.checkpoint import parts

    prepare_part, errors = parts.prepare_part, []

    def prepare(path: Any, set_id: str, number: int, *arguments: Any, **options: Any) -> Any:
        write = prepare_part(path, set_id, number, *arguments, **options)
        return refuse if number == 2 else write

    def refuse() -> Any:
        raise fv.CheckpointError("disk full")

    monkeypatch.setattr(parts, "prepare_part", prepare)

    def program(world: fd.World) -> None:
        checkpoint, _, _ = prepared(world, case, {})
        try:
            checkpoint.save(path, overwrite=True)
        except fv.CheckpointError as error:
            errors.append(str(error))

    fd.simulate(2, program)
    assert sorted(errors) == ["disk full", "rank 1: disk full"]
    for name, data in before.items():
        assert (tmp_path / name).read_bytes() == data


def in_order(world: fd.World, order: str, micro_batches: int) -> tuple[Any, Any, list[fv.Variable]]:
    net = ranks.network({})
    optimizer = fd.Distributed(fv.optimizers.Adam(0.1), world, micro_batches, order)
    optimizer.build(net)
    return fd.Checkpoint(net, optimizer=optimizer), optimizer, net


def save_in_order(world: fd.World, path: Path) -> None:
    checkpoint, optimizer, net = in_order(world, "sequence", 4)
    for number in optimizer.micro_batches():
        optimizer.add(ranks.gradients(0, number))
    optimizer.step()
    for v in net:
        v[...] = 3.0
    checkpoint.save(path)


@pytest.mark.parametrize(
    ("order", "micro_batches", "difference"),
    [
        ("tree", 4, "optimizer.order: 'tree' here, 'sequence' in the file"),
        ("sequence", 6, "optimizer.micro_batches: 6 here, 4 in the file"),
    ],
)
def test_another_order_is_an_error_on_all_ranks(
    order: str, micro_batches: int, difference: str, tmp_path: Path
) -> None:
    """It would give other bits. A program that wants it says so, and is told."""
    path, errors = tmp_path / "a.h5", []
    fd.simulate(2, lambda world: save_in_order(world, path))

    def program(world: fd.World) -> None:
        checkpoint, optimizer, net = in_order(world, order, micro_batches)
        before = ranks.digest(net)
        try:
            checkpoint.restore(path)
        except ValueError as error:
            errors.append(str(error))
        assert (ranks.digest(net), optimizer.iterations) == (before, 0)
        report = checkpoint.restore(path, hyperparameters="program")
        assert report.hyperparameters == [difference]
        assert optimizer.iterations == 1
        assert np.all(net[1].value == 3)

    fd.simulate(3, program)
    assert len(errors) == 3
    assert all(difference in error for error in errors)


def test_one_process_does_not_mind_the_order(tmp_path: Path) -> None:
    fd.simulate(2, lambda world: save_in_order(world, tmp_path / "a.h5"))
    net = ranks.network({})
    fv.Checkpoint(net, optimizer=fv.optimizers.Adam(0.1)).restore(tmp_path / "a.h5")
    net = ranks.network({})
    fv.Checkpoint(net).restore(tmp_path / "a.h5", partial=True)
    assert np.all(net[1].value == 3)


@pytest.mark.parametrize("kind", [FileNotFoundError, ValueError, fv.CheckpointError])
def test_errors_have_one_kind_on_all_ranks(kind: type[Exception], tmp_path: Path) -> None:
    """Also if ranks have errors of different kinds, so that programs that catch some do the same on all."""
    kinds = []

    def raise_(error: Exception) -> None:
        raise error

    def program(world: fd.World) -> None:
        checkpoint, _, _ = in_order(world, "tree", 4)
        mine = {0: None, 1: kind("on one"), 2: RuntimeError("on another")}[world.rank]
        try:
            checkpoint._together("test", lambda: raise_(mine) if mine else None)
        except Exception as error:
            kinds.append(type(error))

    fd.simulate(3, program)
    assert kinds == [kind] * 3


def test_arguments(tmp_path: Path) -> None:
    net = ranks.network({})
    with fd.world() as world:
        with pytest.raises(TypeError, match="must be given one Distributed optimizer, got 0"):
            fd.Checkpoint(net, optimizer=fv.optimizers.Adam())
        optimizer = fd.Distributed(fv.optimizers.Adam(), world, 2)
        with pytest.raises(ValueError, match="call build"):
            fd.Checkpoint(net, optimizer=optimizer)
        optimizer.build(net)
        checkpoint = fd.Checkpoint(net, optimizer=optimizer)
        checkpoint.save(tmp_path / "a.h5")
        with pytest.raises(FileExistsError, match="overwrite=True"):
            checkpoint.save(tmp_path / "a.h5")
        net[1][...] = 0
        checkpoint.save(tmp_path / "a.h5", overwrite=True)
        net[1][...] = 1
        checkpoint.restore(tmp_path / "a.h5")
        assert not np.any(net[1])
        with pytest.raises(FileNotFoundError):
            checkpoint.restore(tmp_path / "b.h5")
