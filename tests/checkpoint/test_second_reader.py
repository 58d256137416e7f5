"""A reader written from docs/format-on-disk.md alone reads every file that fastvar writes, and verifies it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
import fastvar.distributed as fd
from fastvar.checkpoint.sets import CheckpointFile
from tests.checkpoint.fixtures.make import FOLDER
from tests.support.pages import ROOT
from tests.support.part_files import example, save_set

PROGRAM = ROOT / "examples" / "read_checkpoint.py"
EMPTY = {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


def load() -> Any:
    spec = importlib.util.spec_from_file_location("read_checkpoint", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


read = load().read


def trained(**options: Any) -> tuple[list[fv.Variable], fv.Optimizer]:
    dtype = options.pop("dtype", np.float32)
    variables = [fv.Variable(np.linspace(-1, 1, 600), dtype=dtype, name="body/w"), fv.Variable([2.0], name="b")]
    optimizer = fv.optimizers.Adam(0.1, slot_dtype_min_size=0, use_ema=True, **options)
    for k in range(3):
        optimizer.apply([np.sin(np.arange(600.0) + k), [0.5]], variables)
    return variables, optimizer


def checkpoint(folder: Path, **options: Any) -> str:
    variables, optimizer = trained(**options)
    state = {"array": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2)), "text": "naïve", "x": np.nan}
    made = fv.Checkpoint(variables=variables, optimizer=optimizer, state=state, rng=np.random.default_rng(0))
    return str(made.save(folder / "a.h5", step=7))


def managed(folder: Path) -> str:
    variables, optimizer = trained()
    with fv.CheckpointManager(fv.Checkpoint(variables, optimizer=optimizer), folder) as manager:
        return str(manager.save(metrics={"loss": 0.5}))


def saver(folder: Path) -> str:
    return fv.Saver(trained()[0]).save(folder / "model.ckpt", global_step=3)


def in_parts(folder: Path) -> str:
    save_set(folder / "a.h5", example(), 3, {"note": [1, 2]}, {"variables/own": np.zeros((2, 0))})
    return str(folder / "a.h5")


def of_ranks(folder: Path) -> str:
    def program(world: fd.World) -> None:
        net = {"kernel": fv.Variable(np.linspace(0, 1, 5000).reshape(50, 100)), "bias": fv.Variable(np.zeros(3))}
        optimizer = fd.Distributed(fv.optimizers.AdamW(0.1), world, micro_batches=4)
        optimizer.build(net)
        for _ in optimizer.micro_batches():
            optimizer.add({"kernel": np.ones((50, 100)), "bias": np.ones(3)})
        optimizer.step()
        fd.Checkpoint(net, optimizer=optimizer).save(folder / "a.h5")

    fd.simulate(3, program)
    return str(folder / "a.h5")


KINDS: dict[str, Callable[[Path], str]] = {
    "float32": checkpoint,
    "16-bit slots": lambda folder: checkpoint(folder, slot_dtype="bfloat16"),
    "8-bit slots": lambda folder: checkpoint(folder, slot_dtype="8bit"),
    "bfloat16 with a master": lambda folder: checkpoint(folder, dtype="bfloat16"),
    "bfloat16": lambda folder: checkpoint(folder, dtype="bfloat16", master=False),
    "float16 with a master": lambda folder: checkpoint(folder, dtype="float16"),
    "manager": managed,
    "Saver": saver,
    "parts": in_parts,
    "ranks": of_ranks,
    **{path.name: lambda _, path=path: str(path) for path in sorted(FOLDER.glob("*.h5"))},  # type: ignore[misc]
}


def test_it_is_short_and_knows_nothing_of_fastvar() -> None:
    with PROGRAM.open("rb") as file:
        lines = {t.start[0] for t in tokenize.tokenize(file.readline) if t.type not in EMPTY}
    assert len(lines) <= 60
    code = f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import read_checkpoint; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "h5py" in found
    assert not {name.partition(".")[0] for name in found.split()} & {"fastvar", "ml_dtypes"}


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_what_fastvar_reads(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path)
    state, tensors = read(path)
    with CheckpointFile(path) as file:
        assert repr(state) == repr(file.state)
        assert {*tensors} == {*file.entries}
        for name, entry in file.entries.items():
            dtype, array = tensors[name]
            ours = file.read(name)
            assert (dtype, array.shape) == (entry.dtype.name, entry.shape), name
            assert np.ascontiguousarray(array).tobytes() == ours.tobytes(), name


@pytest.mark.parametrize("kind", ["8-bit slots", "parts"])
def test_it_finds_a_flipped_bit_in_every_part_of_a_file(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path)
    rng = np.random.default_rng(0)
    for name in sorted(os.listdir(tmp_path)):
        file = tmp_path / name
        if file.suffix != ".h5":
            continue
        data = file.read_bytes()
        for at in [0, 13, 40, 4079, 4095, *rng.integers(0, len(data), 150), len(data) - 1]:
            file.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(at) % 8]) + data[at + 1 :])
            with pytest.raises(ValueError, match=r"damaged|not a checkpoint|another"):
                read(path)
        file.write_bytes(data[:-1])
        with pytest.raises(ValueError, match="length"):
            read(path)
        file.write_bytes(data)
    read(path)


def test_a_master_and_codes_are_what_the_page_says(tmp_path: Path) -> None:
    """The numbers of a master and of a slot in 8 bits, by the formulas of the page."""
    variables, optimizer = trained(dtype="bfloat16", slot_dtype="8bit")
    path = fv.Checkpoint(variables=variables, optimizer=optimizer).save(tmp_path / "a.h5")
    tensors = {name: array for name, (_, array) in read(path)[1].items()}
    high = tensors["variables/body/w"].astype(np.uint32) << np.uint32(16)
    low = tensors["variables/body/w.master"].astype(np.int64).astype(np.uint32)  # modulo 2**32
    np.testing.assert_array_equal((high + low).view(np.float32), variables[0].master)
    for slot in ("momentum", "velocity"):
        codes = tensors[f"optimizer/body/w/{slot}.codes"].astype(np.uint32)
        s = tensors[f"optimizer/body/w/{slot}.scales"].repeat(256)[: codes.size]
        b = np.where(s < 0, codes & 127, codes)
        f = (0x40000000 + (b << 19)).astype(np.uint32).view(np.float32) - np.float32(2)
        values = np.where(s < 0, np.where(codes >= 128, -f * -s, f * -s), f * s)
        assert (s < 0).any() == (slot == "momentum")
        np.testing.assert_array_equal(values, np.asarray(optimizer.slot(variables[0], slot)))
