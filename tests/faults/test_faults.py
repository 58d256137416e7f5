"""The promises of a checkpoint, each put to its fault: nothing is lost, nothing is wrong, the process lives.

`FASTVAR_KILLS=10000` (`make soak`) kills so many saves instead of 600.
"""

import contextlib
import os
import shutil
import subprocess

import pytest

from tests.faults import lab
from tests.faults.formats import FORMATS, OURS, payload
from tests.faults.faults import Bench, same

pytestmark = pytest.mark.skipif(not lab.available, reason="faults are made by a library for Linux, with gcc")
KILLS = int(os.environ.get("FASTVAR_KILLS", "600"))
MANAGER, ONE_FILE = (format.name for format in OURS[:2])
ours = pytest.mark.parametrize("format", [format.name for format in OURS])


def counts(fault: str, format: str, amount: int = 0) -> dict[str, int]:
    return lab.run(fault, format, amount)["counts"]


@pytest.mark.parametrize(("format", "share"), [(f.name, 1 / len(OURS)) for f in OURS])
def test_kill_at_every_call_and_at_random_instants(format, share):
    found = counts("kills", format, round(KILLS * share))
    assert found.keys() == {"old", "new"}
    assert sum(found.values()) >= KILLS * share


@ours
def test_every_failing_call(format):
    """The old or the new one is there; and an error named the cause, or the new one is."""
    figures = lab.run("failing calls", format)
    assert figures["counts"].keys() <= {"old", "new", "debris"}  # what cannot be removed stays
    assert min(figures["counts"][kind] for kind in ("old", "new")) > 0
    for error in figures["errors"]:
        assert error.startswith("CheckpointError: /model"), error


@ours
def test_interrupted_calls_and_short_writes(format):
    assert counts("interrupted calls", format).keys() <= {"old", "new"}


@ours
def test_full_disk_at_every_4_kb(format):
    figures = lab.run("full disk", format)
    assert figures["counts"].keys() == {"old", "new"}
    named = [e for e in figures["errors"] if e.startswith("CheckpointError: /model") and ": not saved: " in e]
    assert figures["errors"] == named
    assert {e.rpartition(": ")[2] for e in named} == {"No space left on device", "File too large"}


@ours
def test_every_flipped_bit(format):
    found = counts("flipped bits", format, 0 if format == ONE_FILE else 4000)
    assert found.keys() == {"told"}


@ours
def test_every_length_of_a_truncated_file(format):
    assert counts("truncations", format, 0 if format == ONE_FILE else 1000).keys() == {"told"}


@ours
def test_power_loss(format):
    assert counts("power loss", format, 1500).keys() == {"old", "new"}
    assert counts("power loss at first", format, 500).keys() == {"old", "new"}


@ours
def test_eight_writers(format):
    assert counts("writers", format, 4).keys() == {"new"}


@contextlib.contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes, where we may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@ours
def test_a_real_disk_that_is_full(format, tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20):
        (tmp_path / "disk" / "a").mkdir()
        bench = Bench(FORMATS[format], tmp_path / "disk" / "a")
        filler = tmp_path / "disk" / "filler"
        outcomes = set()
        for room in range(0, 1 << 18, 4096):
            bench.folder = bench.before
            with filler.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
                    file.flush()
            os.truncate(filler, filler.stat().st_size // 4096 * 4096 - room)
            said = bench.save(lambda: None)
            assert said.signal == 0
            arrays = bench.format.load(bench.folder)
            new = same(arrays, payload(1))
            assert new or same(arrays, payload(0))
            assert new == (said.text == "done")
            assert new or said.text.startswith("CheckpointError: ")
            outcomes.add(new)
            if new:
                break
        assert outcomes == {True, False}
