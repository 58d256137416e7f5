"""What ranks read of a checkpoint: each byte once, and enough to continue."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd
from fastvar.checkpoint.part_list import Piece
from fastvar.checkpoint.sets import CheckpointFile
from fastvar.distributed import reading
from tests.support import ranks

SIZES = (1, 2, 3, 4, 6)
IO = Path("/proc/self/io")  # Linux counts there what this process reads
KINDS = {
    "cut": lambda: fv.optimizers.Adam(0.125),
    "whole": lambda: fv.optimizers.Adafactor(0.125),
}


def network(fill: float) -> dict[str, fv.Variable]:
    """Return variables of 2 MB: a large one, others, a frozen one, and one that the optimizer does not have."""
    shapes = {
        "large": (500, 600),
        "wide": (100, 900),
        "frozen": (300, 200),
        "b": (7,),
        "none": (0,),
        "buffer": (50, 999),
    }
    net = {name: fv.Variable(np.full(shape, fill, np.float32), name=name) for name, shape in shapes.items()}
    net["frozen"].trainable = False
    return net


def prepared(world: fd.World, kind: str, fill: float = 7.0) -> tuple[Any, Any, dict[str, fv.Variable], Any]:
    net, notes = network(fill), {"seen": np.zeros(30_000) + fill}
    optimizer = fd.Distributed(KINDS[kind](), world, 2)
    optimizer.build([v for name, v in net.items() if name != "buffer"])
    return fd.Checkpoint(net, optimizer=optimizer, notes=notes), optimizer, net, notes


def save(world: fd.World, kind: str, path: Path) -> str:
    checkpoint, optimizer, net, _ = prepared(world, kind, 1.0)
    step(optimizer)
    for k, v in enumerate(net.values()):  # so that no element is like another
        v[...] = np.arange(v.size, dtype=np.float32).reshape(v.shape) + k
    checkpoint.save(path)
    return after(optimizer, net)


def step(optimizer: Any) -> None:
    for i in optimizer.micro_batches():
        random = np.random.default_rng([optimizer.iterations, i])
        optimizer.add([random.normal(size=v.shape).astype(np.float32) for v in optimizer.variables])
    optimizer.step()


def after(optimizer: Any, net: dict[str, fv.Variable]) -> str:
    step(optimizer)
    return ranks.digest([*net.values()])


def bytes_read() -> int:
    return int(IO.read_text().partition("rchar: ")[2].partition("\n")[0])


@pytest.mark.skipif(not IO.exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", SIZES)
def test_each_byte_is_read_once(first: int, kind: str, tmp_path: Path) -> None:
    """All ranks together read what the tensors have, and little more: the tables of the files."""
    path = tmp_path / "a.h5"
    expected = {*fd.simulate(first, lambda world: save(world, kind, path))}
    with CheckpointFile(path) as file:
        needed = sum(entry.length for entry in file.entries.values())
    for second in SIZES:
        restored = []

        def restore(world: fd.World, restored: list[Any] = restored) -> str:
            checkpoint, optimizer, net, notes = prepared(world, kind)
            world.agree("begin")
            before = bytes_read()
            world.agree("middle")
            checkpoint.restore(path)
            world.agree("read")
            restored.append(bytes_read() - before)
            world.agree("counted")
            assert notes["seen"][0] == 1
            return after(optimizer, net)

        found = {*fd.simulate(second, restore)}
        assert found == expected
        assert needed < max(restored) < 1.1 * needed


def test_in_rounds_of_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces larger than a round are read in several, and hashed as a whole."""
    path = tmp_path / "a.h5"
    expected = {*fd.simulate(2, lambda world: save(world, "cut", path))}
    monkeypatch.setattr(reading, "ROUND", 10_000)

    def restore(world: fd.World) -> str:
        checkpoint, optimizer, net, _ = prepared(world, "cut")
        checkpoint.restore(path)
        return after(optimizer, net)

    assert {*fd.simulate(3, restore)} == expected
    for damaged in [p for p in tmp_path.iterdir() if p.suffix == ".h5"]:
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[:-40_000] + bytes([whole[-40_000] ^ 1]) + whole[-39_999:])
        with pytest.raises(fv.CheckpointError, match=f"{damaged.name}.*damaged"):
            fd.simulate(3, restore)
        damaged.write_bytes(whole)


def test_ranks_share_the_reading() -> None:
    pieces = [(f"w{k}", Piece(k % 3, 0, 1000), 4) for k in range(30)] + [("large", Piece(1, 0, 10_000), 8)]
    for size in SIZES:
        plan = reading.rounds_of(pieces, size)
        segments = [segment for rounds in plan for one in rounds for segment in one]
        assert sorted((s.name, s.start, s.stop) for s in segments) == sorted(
            (n, 0, p.stop * w) for n, p, w in pieces
        )
        of_ranks = [sum(s.nbytes for one in rounds for s in one) for rounds in plan]
        assert max(of_ranks) <= 200_000 / size + 80_000
        assert [s.piece.part for s in segments] == sorted(s.piece.part for s in segments)


def test_pieces_are_cut_into_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ROUND", 1000)
    (rounds,) = reading.rounds_of([("a", Piece(0, 0, 100), 4), ("b", Piece(0, 50, 700), 4)], 1)
    assert [[(s.name, s.start, s.stop) for s in one] for one in rounds] == [
        [("a", 0, 400)],
        [("b", 200, 1200)],
        [("b", 1200, 2200)],
        [("b", 2200, 2800)],
    ]


def test_other_file_on_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced while ranks open it is an error on all."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fd.simulate(1, lambda world, name=name: save(world, "cut", tmp_path / name / "x.h5"))
    errors = []

    class Replaced(CheckpointFile):
        def __init__(self, path: Any, *, check: bool) -> None:
            super().__init__(path if check else tmp_path / "b" / "x.h5", check=check)

    monkeypatch.setattr("fastvar.distributed.checkpoint.CheckpointFile", Replaced)

    def restore(world: fd.World) -> None:
        checkpoint, _, net, _ = prepared(world, "cut")
        try:
            checkpoint.restore(tmp_path / "a" / "x.h5")
        except fv.CheckpointError as error:
            errors.append(str(error))
        assert np.all(net["large"].value == 7)

    fd.simulate(2, restore)
    assert len(errors) == 2
    assert all("rank 1 and rank 0 have opened different files" in error for error in errors)


def test_names_of_the_file_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    expected = {*fd.simulate(3, lambda world: save(world, "cut", path))}

    def restore(world: fd.World) -> str:
        net, notes = network(7.0), {"seen": np.zeros(30_000)}
        for v in net.values():
            v._name = f"new/{v.name}"
        optimizer = fd.Distributed(KINDS["cut"](), world, 2)
        optimizer.build([v for name, v in net.items() if name != "buffer"])
        checkpoint = fd.Checkpoint(net, optimizer=optimizer, notes=notes)
        with pytest.raises(ValueError, match="new/large"):
            checkpoint.restore(path)
        checkpoint.restore(path, name_map=lambda name: name.removeprefix("new/"))
        return after(optimizer, net)

    assert {*fd.simulate(2, restore)} == expected


def test_a_part_alone_is_refused(tmp_path: Path) -> None:
    fd.simulate(2, lambda world: save(world, "cut", tmp_path / "a.h5"))
    (part,) = tmp_path.glob("*.part-1-of-2.h5")
    shutil.copy(part, tmp_path / "b.h5")
    with pytest.raises(fv.CheckpointError, match="is one part of a set"):
        fd.simulate(2, lambda world: prepared(world, "cut")[0].restore(tmp_path / "b.h5"))
