"""Many checkpoints of many ranks in one folder."""

from pathlib import Path
from typing import Any

import pytest

import fastvar as fv
import fastvar.distributed as fd
from tests.support import ranks
from tests.support.ranks import TOTAL, steps


def train(world: fd.World, folder: Path, until: int, **options: Any) -> tuple[str, list[int], int]:
    """Restore, train until a step and save each; return a digest, the steps that were done, and what is there."""
    net = ranks.network({})
    optimizer = fd.Distributed(fv.optimizers.Adam(0.1, amsgrad=True), world, TOTAL)
    optimizer.build(net)
    done = []
    with fd.CheckpointManager(fd.Checkpoint(net, optimizer=optimizer), folder, **options) as manager:
        manager.restore_or_initialize()
        while optimizer.iterations < until:
            steps(optimizer, {}, range(optimizer.iterations, optimizer.iterations + 1))
            manager.save(metrics={"loss": 1 / optimizer.iterations})
            done.append(optimizer.iterations)
        return ranks.digest(net), done, len(manager.checkpoints)


def only(results: list[Any]) -> Any:
    assert all(result == results[0] for result in results)
    return results[0]


def test_continues_on_other_ranks_and_removes_old_sets(tmp_path: Path) -> None:
    whole, _, _ = only(fd.simulate(1, lambda world: train(world, tmp_path / "whole", 6)))
    folder = tmp_path / "run"
    for size, until, done in ((2, 3, [1, 2, 3]), (4, 4, [4]), (1, 5, [5]), (3, 6, [6])):
        found, steps_done, count = only(fd.simulate(size, lambda w, u=until: train(w, folder, u, max_to_keep=2)))
        assert steps_done == done
        assert count == min(2, until)
    assert found == whole
    files = sorted(path.name for path in folder.iterdir() if path.suffix == ".h5")
    assert len(files) == 2 + 1 + 3  # the commit files, the part of one rank, and those of three
    history = fv.CheckpointManager(fv.Checkpoint(ranks.network({})), folder).history()
    assert history.step.tolist() == [5, 6]


def test_damage_on_one_rank_falls_back_on_all(tmp_path: Path) -> None:
    fd.simulate(3, lambda world: train(world, tmp_path, 3))
    newest = max(path for path in tmp_path.iterdir() if ".part-3-" in path.name)
    newest.unlink()
    with pytest.warns(RuntimeWarning, match="restored .* instead"):
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
