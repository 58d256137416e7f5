"""Many checkpoints of many ranks in one folder."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastvar as fv
import fastvar.distributed as fd
from tests.support import ranks
from tests.support.ranks import TOTAL, steps


def train(
    world: fd.World, folder: Path, until: int, blocking: bool = True, **options: Any
) -> tuple[str, list[int], int]:
    """Restore, train until a step and save each; return a digest, the steps that were done, and what is there."""
    net = ranks.network({})
    optimizer = fd.Distributed(fv.optimizers.Adam(0.1, amsgrad=True), world, TOTAL)
    optimizer.build(net)
    done = []
    with fd.CheckpointManager(fd.Checkpoint(net, optimizer=optimizer), folder, **options) as manager:
        manager.restore_or_initialize()
        while optimizer.iterations < until:
            steps(optimizer, {}, range(optimizer.iterations, optimizer.iterations + 1))
            manager.save(metrics={"loss": 1 / optimizer.iterations}, blocking=blocking)
            done.append(optimizer.iterations)
        manager.wait()
        return ranks.digest(net), done, len(manager.checkpoints)


def only(results: list[Any]) -> Any:
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize("blocking", [True, False])
def test_continues_on_other_ranks_and_removes_old_sets(blocking: bool, tmp_path: Path) -> None:
    whole, _, _ = only(fd.simulate(1, lambda world: train(world, tmp_path / "whole", 6)))
    folder = tmp_path / "run"
    for size, until, done in ((2, 3, [1, 2, 3]), (4, 4, [4]), (1, 5, [5]), (3, 6, [6])):
        found, steps_done, count = only(
            fd.simulate(size, lambda w, u=until: train(w, folder, u, blocking, max_to_keep=2))
        )
        assert steps_done == done
        assert count == min(2, until)
    assert found == whole
    files = sorted(path.name for path in folder.iterdir() if path.suffix == ".h5")
    assert len(files) == 2 + 1 + 3  # the commit files, the part of one rank, and those of three
    history = fv.CheckpointManager(fv.Checkpoint(ranks.network({})), folder).history()
    assert history.step.tolist() == [5, 6]


def flip(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[-5000] ^= 1
    part.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "truncated": lambda part: os.truncate(part, part.stat().st_size - 1),
    "missing": lambda part: part.unlink(),
    "foreign": lambda part: shutil.copy(next(part.parent.glob("ckpt-2.*.part-3-of-3.h5")), part),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_on_one_rank_falls_back_on_all(damage: str, tmp_path: Path) -> None:
    fd.simulate(3, lambda world: train(world, tmp_path, 3))
    (newest,) = tmp_path.glob("ckpt-3.*.part-3-of-3.h5")
    DAMAGES[damage](newest)
    with pytest.warns(RuntimeWarning, match=rf"{newest.name}.* restored .*ckpt-2\.h5 instead"):
        _, done, _ = only(fd.simulate(2, lambda world: train(world, tmp_path, 4)))
    assert done == [3, 4]


def test_all_damaged_is_an_error_on_all(tmp_path: Path) -> None:
    fd.simulate(2, lambda world: train(world, tmp_path, 1))
    for path in tmp_path.iterdir():
        if ".part-" in path.name:
            path.unlink()
    with pytest.raises(fv.CheckpointError, match="no checkpoint is whole"):
        fd.simulate(2, lambda world: train(world, tmp_path, 2))


def test_another_program_saves_here(tmp_path: Path) -> None:
    with (
        fv.CheckpointManager(fv.Checkpoint(ranks.network({})), tmp_path),
        pytest.raises(fv.CheckpointError, match=r"not saved|lock"),
    ):
        fd.simulate(2, lambda world: train(world, tmp_path, 1))


def test_checkpoint_must_be_of_ranks(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"must be a Checkpoint of fastvar\.distributed, got Checkpoint"):
        fd.CheckpointManager(fv.Checkpoint(ranks.network({})), tmp_path)  # type: ignore[arg-type]


def test_error_in_the_background_is_raised_on_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvar.checkpoint import parts

    prepare_part, errors = parts.prepare_part, []

    def prepare(path: Any, set_id: str, number: int, *arguments: Any, **options: Any) -> Any:
        write = prepare_part(path, set_id, number, *arguments, **options)
        return refuse if number == 2 and options["step"] == 2 else write

    def refuse() -> Any:
        raise fv.CheckpointError("disk full")

    monkeypatch.setattr(parts, "prepare_part", prepare)

    def program(world: fd.World) -> str:
        net = ranks.network({})
        optimizer = fd.Distributed(fv.optimizers.Adam(0.1, amsgrad=True), world, TOTAL)
        optimizer.build(net)
        with fd.CheckpointManager(fd.Checkpoint(net, optimizer=optimizer), tmp_path) as manager:
            for step in range(4):
                steps(optimizer, {}, range(step, step + 1))
                try:
                    manager.save(blocking=False)
                except fv.CheckpointError as error:
                    errors.append(str(error))
                    assert optimizer.iterations == 3
        return ranks.digest(net)

    fd.simulate(2, program)
    assert sorted(errors) == ["disk full", "rank 1: disk full"]
    kept = [path.name for path in tmp_path.iterdir() if path.suffix == ".h5" and "part" not in path.name]
    assert len(kept) == 2  # of steps 1 and 4; the third was not made


def saving(world: fd.World, folder: Path, **options: Any) -> tuple[Any, Any, Any]:
    net = ranks.network({})
    optimizer = fd.Distributed(fv.optimizers.Adam(0.1), world, TOTAL)
    optimizer.build(net)
    return fd.CheckpointManager(fd.Checkpoint(net, optimizer=optimizer), folder, **options), optimizer, net


def until_written(manager: Any) -> None:
    while manager._background.busy:
        time.sleep(0.01)


@pytest.mark.parametrize("slow", [None, 1, 2])
def test_a_set_exists_after_the_step_for_which_all_parts_are_written(
    slow: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step waits for no part. If one is slow, the set exists after a later step."""
    from fastvar.checkpoint import parts

    prepare_part, go = parts.prepare_part, threading.Event()

    def prepare(path: Any, set_id: str, number: int, *arguments: Any, **options: Any) -> Any:
        write = prepare_part(path, set_id, number, *arguments, **options)

        def write_late() -> Any:
            assert go.wait(60)
            return write()

        return write_late if number == slow else write

    monkeypatch.setattr(parts, "prepare_part", prepare)

    def program(world: fd.World) -> list[int]:
        manager, optimizer, net = saving(world, tmp_path)
        counts = []
        with manager:
            manager.save(blocking=False)
            saved = ranks.digest(net)
            for step in range(3):
                if step == 1:
                    go.set()
                if slow != world.rank + 1 or step:
                    until_written(manager)
                world.agree("written")
                steps(optimizer, {}, range(step, step + 1))
                counts.append(len(manager.checkpoints))
                world.agree("counted")
            assert optimizer.deferred == []
            assert manager.wait() is None
            fresh = ranks.network({})
            fv.Checkpoint(fresh).restore(manager.latest_checkpoint, partial=True)
            assert ranks.digest(fresh) == saved  # not what the steps have made of it
        return counts

    assert only(fd.simulate(2, program)) == ([1, 1, 1] if slow is None else [0, 1, 1])


def test_an_error_that_a_step_meets_is_raised_by_the_next_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastvar.checkpoint import parts

    def program(world: fd.World) -> str:
        manager, optimizer, _ = saving(world, tmp_path)
        with manager:
            manager.save(blocking=False)
            until_written(manager)
            world.agree("written")
            steps(optimizer, {}, range(1))
            assert optimizer.iterations == 1
            steps(optimizer, {}, range(1, 2))
            with pytest.raises(fv.CheckpointError) as raised:
                manager.wait()
            manager.wait()
            world.agree("repaired")
            monkeypatch.undo()
            world.agree("save again")
            manager.save()
            assert len(manager.checkpoints) == 1
        return str(raised.value).removeprefix("rank 0: ")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise fv.CheckpointError("disk full")

    monkeypatch.setattr(parts, "publish", refuse)
    assert only(fd.simulate(2, program)) == "disk full"


def test_each_rank_reads_back_its_own_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is not what was written is an error, and no older set is removed."""
    from fastvar.checkpoint import parts

    fd.simulate(2, lambda world: train(world, tmp_path, 1, max_to_keep=1))
    before = sorted(path.name for path in tmp_path.iterdir())
    prepare_part = parts.prepare_part

    def prepare(path: Any, set_id: str, number: int, *arguments: Any, **options: Any) -> Any:
        write = prepare_part(path, set_id, number, *arguments, **options)

        def spoil() -> Any:
            record = write()
            part = tmp_path / record["file"]
            data = bytearray(part.read_bytes())
            data[-5000] ^= 1
            part.write_bytes(data)
            return record

        return spoil if number == 2 else write

    monkeypatch.setattr(parts, "prepare_part", prepare)
    with pytest.raises(fv.CheckpointError, match=r"part-2-of-2\.h5: damaged"):
        fd.simulate(2, lambda world: train(world, tmp_path, 2, max_to_keep=1))
    assert {*before} < {path.name for path in tmp_path.iterdir()}
    monkeypatch.undo()
    _, done, _ = only(fd.simulate(2, lambda world: train(world, tmp_path, 2, max_to_keep=1)))
    assert done == [2]
    assert len([*tmp_path.glob("*.h5")]) == 3  # the parts of the failed save are gone


def test_error_in_the_block_leaves_a_save_unfinished(tmp_path: Path) -> None:
    def program(world: fd.World) -> None:
        net = ranks.network({})
        optimizer = fd.Distributed(fv.optimizers.Adam(0.1), world, TOTAL)
        optimizer.build(net)
        with fd.CheckpointManager(fd.Checkpoint(net, optimizer=optimizer), tmp_path) as manager:
            manager.save(blocking=False)
            if world.rank == 1:
                raise ArithmeticError("on one rank")
            manager.wait()

    with pytest.raises(ArithmeticError, match="on one rank"):
        fd.simulate(2, program, timeout=20)
    assert fv.CheckpointManager(fv.Checkpoint(ranks.network({})), tmp_path).checkpoints == []
