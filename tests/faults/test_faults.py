"""Checkpoints keep their promises under every fault: nothing is lost or wrong, and the process lives.

`FASTVAR_KILLS=10000` (`make soak`) kills 10,000 saves at random instants instead of 600.
"""

import os

import pytest

from tests.faults import lab
from tests.faults.formats import MORE, OURS, QUICK, RANKS, SETS

pytestmark = pytest.mark.skipif(not lab.available, reason="faults are made by a library for Linux, with gcc")
KILLS = int(os.environ.get("FASTVAR_KILLS", "600"))
MANAGER, ONE_FILE = (format.name for format in OURS[:2])
ours = pytest.mark.parametrize("format", [format.name for format in OURS])
ALL = [format.name for format in [*OURS, *MORE]]
all_ours = pytest.mark.parametrize("format", ALL)


def counts(fault: str, format: str, amount: int = 0) -> dict[str, int]:
    return lab.run(fault, format, amount)["counts"]


@all_ours
def test_kill_at_every_call_and_at_random_instants(format):
    found = counts("kills", format, KILLS // len(ALL))
    assert found.keys() == {"old", "new"}
    assert sum(found.values()) > KILLS // len(ALL)  # as well as at every call


@all_ours
def test_every_failing_call(format):
    """The old or the new generation loads. Either it is the new one, or an error named the cause."""
    figures = lab.run("failing calls", format)
    assert figures["counts"].keys() <= {"old", "new", "debris"}  # a file that cannot be removed stays
    assert min(figures["counts"][kind] for kind in ("old", "new")) > 0
    for error in figures["errors"]:
        assert error.startswith("CheckpointError: /model"), error


@ours
def test_interrupted_calls_and_short_writes(format):
    assert counts("interrupted calls", format).keys() <= {"old", "new"}


@all_ours
def test_full_disk_at_every_4_kb(format):
    figures = lab.run("full disk", format)
    assert figures["counts"].keys() == {"old", "new"}
    named = [e for e in figures["errors"] if e.startswith("CheckpointError: /model") and ": not saved: " in e]
    assert figures["errors"] == named
    assert {e.rpartition(": ")[2] for e in named} == {"No space left on device", "File too large"}


@pytest.mark.parametrize("fault", ["flipped bits", "truncations"])
@pytest.mark.parametrize(("format", "amount"), [(QUICK.name, 0), (MANAGER, 2000), (ONE_FILE, 2000)])
def test_every_flipped_bit_and_every_length(fault, format, amount):
    """Try all with the reader alone, and samples through the API. The worst outcome is an error."""
    found = counts(fault, format, amount)
    assert found.keys() == {"told"}
    assert found["told"] >= (amount or 10_000)


@all_ours
def test_power_loss(format):
    assert counts("power loss", format, 1500).keys() == {"old", "new"}
    assert counts("power loss at first", format, 500).keys() == {"old", "new"}


def test_a_set_of_part_files():
    """The same for all files of a set, each of which is written as one file is."""
    assert counts("kills", SETS.name, KILLS // 40).keys() == {"old", "new"}
    figures = lab.run("failing calls", SETS.name, max(1, KILLS // 600))
    assert figures["counts"].keys() <= {"old", "new", "debris"}
    assert all(error.startswith("CheckpointError: /model") for error in figures["errors"]), figures["errors"]
    assert counts("power loss", SETS.name, 200).keys() == {"old", "new"}
    assert counts("power loss at first", SETS.name, 100).keys() == {"old", "new"}


def test_a_set_that_ranks_save():
    """Each call of a save fails once, on one of them: one error on all. Before a release, also kill at each."""
    figures = lab.run("failing calls", RANKS.name, 1)
    assert figures["counts"].keys() <= {"old", "new", "debris"}
    assert min(figures["counts"][kind] for kind in ("old", "new")) > 0
    assert all(error.startswith("CheckpointError: /model") for error in figures["errors"]), figures["errors"]
    if KILLS > 600:
        assert counts("kills", RANKS.name, KILLS // 40).keys() == {"old", "new"}


@ours
def test_eight_writers(format):
    assert counts("writers", format, 4).keys() == {"new"}


@ours
def test_a_disk_that_is_really_full(format):
    """The same on a small file system in memory, if we may mount one."""
    found = counts("full file system", format)
    if not found:
        pytest.skip("no file system can be mounted here")
    assert found.keys() == {"old", "new"}
