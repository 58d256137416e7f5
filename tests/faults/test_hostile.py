"""A hostile file gives an error, with bounded memory, and no other file is opened."""

import os
import socket
import tracemalloc

import numpy as np
import pytest

import fastvar as fv
from fastvar.checkpoint.file_format import Record
from fastvar.checkpoint.reader import File
from tests.faults import lab
from tests.faults.hostile import Target, _forged, _text, as_version_1

needs_linux = pytest.mark.skipif(not lab.available, reason="faults are made by a library for Linux, with gcc")


@needs_linux
def test_two_thousand_mutants():
    """Read each in every way, with at most 64 MB more memory. Errors are the documented ones."""
    counts = lab.run("hostile files", "fastvar", 2000)["counts"]
    assert counts.keys() == {"told", "read"}, counts
    assert counts["told"] > 5 * counts["read"]


def test_what_the_mutants_are_made_of_is_good(tmp_path):
    """Each error names the change that causes it."""
    path, target = tmp_path / "a.h5", Target()
    target.checkpoint.save(path)
    path.write_bytes(as_version_1(path.read_bytes()))
    assert Record.unpack(path.read_bytes()).version == 1
    target.w[...] = 0
    target.checkpoint.restore(path)
    assert target.w[0] == -1


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "dangling", "loop"])
@pytest.mark.skipif(os.name == "nt", reason="there are no such files")
def test_what_is_no_file_at_all(kind, tmp_path, monkeypatch):
    """A special file gives an error at once: a FIFO or an endless device does not block."""
    path, target = tmp_path / "ckpt-1.h5", Target()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "nowhere", "loop": path.name}[kind])
    with pytest.raises(OSError, match=r"ckpt-1\.h5"):
        target.checkpoint.restore(path)
    manager = fv.CheckpointManager(target.checkpoint, tmp_path)
    if kind == "dangling":  # it may have been a checkpoint, and may return: the folder is not empty
        with pytest.raises(fv.CheckpointError, match=r"ckpt-1\.h5"):
            manager.restore_or_initialize()
    else:
        with pytest.warns(RuntimeWarning, match=r"ckpt-1\.h5: .*; it is left alone"):
            assert manager.restore_or_initialize() is None


def grown(function):
    """Return the peak memory of `function`."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("items", ["[],", "{},", "1,", "1e5,", '"ab",'])
def test_memory_is_in_proportion_to_the_file(items, tmp_path):
    """A state of a megabyte of brackets takes at most 64 times its length."""
    path = tmp_path / "a.h5"
    target = Target()
    target.checkpoint.save(path)
    good = path.read_bytes()
    record = Record.unpack(good)
    text = f'{{"data": {{"x": [{(items * (1 << 20))[: (1 << 20) // len(items) * len(items)]}0]}}}}'.encode()
    path.write_bytes(_forged(good, record, _text(good, record.manifest), text))
    fresh = Target()
    assert grown(lambda: fresh.checkpoint.restore(path, partial=True)) < 64 * len(text)
    assert len(fresh.data["x"]) == (1 << 20) // len(items) + 1


def test_a_file_of_nothing_costs_no_more_than_it_has(tmp_path):
    """A sparse file of a terabyte has the stated length; the error says what is missing."""
    path = tmp_path / "a.h5"
    fv.Checkpoint(w=fv.Variable(np.ones(3))).save(path)
    os.truncate(path, 1 << 40)

    def read():
        with pytest.raises(fv.CheckpointError, match="1,099,511,627,776 bytes"):
            File(path)

    assert grown(read) < 1 << 20
