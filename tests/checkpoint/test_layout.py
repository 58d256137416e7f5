"""libhdf5 and its tools read the HDF5 structures that fastvar writes; the cost of the layout is bounded."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvar as fv
from fastvar.checkpoint import file_format, layout, reader, workers, writer

Arrays = dict[str, np.ndarray[Any, Any]]
TOOLS = [["h5dump", "-H"], ["h5ls", "-r"], ["h5stat"]]


def write(path: Path, tensors: Arrays, **state: Any) -> Path:
    writer.write(path, tensors, state, step=0, replace=True)
    return path


def datasets(path: Path) -> Arrays:
    """Return what libhdf5 finds by walking over the groups of the file."""
    found: Arrays = {}

    def visit(name: str, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset):
            found[name] = thing[()]

    with h5py.File(path) as file:
        file.visititems(visit)
        for name in found:
            assert name in file  # in its own way, link by link
    assert found.keys() >= {file_format.MANIFEST, file_format.STATE}
    return {name: array for name, array in found.items() if name not in (file_format.MANIFEST, file_format.STATE)}


def check(path: Path, tensors: Arrays) -> None:
    with reader.File(path) as file:
        file.verify()
        assert list(file.entries) == list(tensors)
    found = datasets(path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


# Up to 32 links are in the header of a group; more are in leaves of 64, with 64 leaves in a node of the B-tree.
@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 63, 64, 65, 128, 129, 4096, 4097])
def test_groups_of_every_size(count: int, tmp_path: Path) -> None:
    tensors = {f"v/{i}": np.full(i % 3, i, np.int16) for i in range(count)}
    check(write(tmp_path / "x", tensors), tensors)


PART = st.text("aäß€😀 .-~\x01\x7f", min_size=1, max_size=4).filter(lambda part: part not in (".", ".."))
PATHS = st.lists(st.lists(PART, min_size=1, max_size=4).map("/".join), max_size=60, unique=True)


@settings(max_examples=50, deadline=None)
@given(paths=PATHS)
def test_groups_of_any_names(paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    inner = {f"v/{path}" for path in paths}
    tensors = {
        path: np.array(index)
        for index, path in enumerate(sorted(inner))
        if not any(other.startswith(f"{path}/") for other in inner)
    }
    check(write(tmp_path_factory.mktemp("any") / "x", tensors), tensors)


def test_deep_groups_and_long_names(tmp_path: Path) -> None:
    tensors = {"/".join("a" * 2000): np.arange(3), **{f"v/{'n' * size}": np.arange(size) for size in range(1, 99)}}
    tensors["v/" + "ü" * 2047] = np.arange(2.0)
    path = write(tmp_path / "x", tensors)
    with reader.File(path) as file:
        file.verify()
    with h5py.File(path) as file:
        for name, array in tensors.items():
            np.testing.assert_array_equal(file[name], array)


def test_small_and_large_arrays_of_every_alignment(tmp_path: Path) -> None:
    large = file_format.LARGE
    sizes = [1, large, large - 1, 3, large + 1, 0, 5, 3 * large + 7, file_format.CHUNK + 1]
    tensors = {f"v/{i}": np.arange(size).astype(np.uint8) for i, size in enumerate(sizes)}
    tensors |= {f"state/arrays/{i}": np.arange(size).astype(np.int8) for i, size in enumerate(sizes)}
    check(write(tmp_path / "x", tensors, text="ü" * 100_000), tensors)


def test_the_root_may_hold_many(tmp_path: Path) -> None:
    tensors = {f"v{i}": np.arange(3) for i in range(200)}
    check(write(tmp_path / "x", tensors), tensors)


@pytest.mark.parametrize("count", [1, 40, 2100])
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool[0])
def test_tools_of_hdf5_read_it(tool: list[str], count: int, tmp_path: Path) -> None:
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    tensors = {f"v/{i}/{name}": np.arange(4.0) for i in range(count) for name in "wm"}
    path = write(tmp_path / "x", tensors | {f"state/arrays/{i}": np.arange(i) for i in range(40)})
    told = subprocess.run([*tool, path], check=False, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "")
    if tool[0] == "h5ls":
        assert told.stdout.count("Dataset") == 2 * count + 40 + 2


def test_other_programs_may_edit_it(tmp_path: Path) -> None:
    """libhdf5 can add and remove links, in headers and in B-trees."""
    tensors = {f"{group}/{i}": np.arange(i) for group, count in [("a", 3), ("b", 500)] for i in range(count)}
    path = write(tmp_path / "x", tensors)
    added = {f"{group}/new{i}": np.arange(i) for group in "abc" for i in range(70)}
    with h5py.File(path, "r+") as file:
        for name, array in added.items():
            file[name] = array
        for name in list(tensors)[::3]:
            del file[name]
            del tensors[name]
    assert datasets(path).keys() == {*tensors, *added}
    with pytest.raises(fv.CheckpointError, match="edited"):
        reader.File(path)


def test_the_order_of_names_does_not_matter_to_libhdf5(tmp_path: Path) -> None:
    names = [f"v/{i % 7}/{i}" for i in range(500)]
    random.Random(0).shuffle(names)
    tensors = {name: np.array(int(name.rpartition("/")[2])) for name in names}
    check(write(tmp_path / "x", tensors), tensors)


# The cost, counted in Python calls, which do not depend on the machine.


def calls(action: Callable[[], object]) -> int:
    """Return the number of functions, of Python and C, that Python calls."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def saving(checkpoint: fv.Checkpoint, path: Path) -> Callable[[], object]:
    return lambda: checkpoint.save(path, overwrite=True)


def variables(count: int) -> list[fv.Variable]:
    return [fv.Variable(np.zeros(3, np.float32), name=f"w{i}") for i in range(count)]


def test_a_first_save_costs_in_proportion_to_the_number_of_tensors(tmp_path: Path) -> None:
    count = int(os.environ.get("FASTVAR_TENSORS", "5000"))
    few, many = (fv.Checkpoint(variables=variables(n)) for n in (count // 10, count))
    layout.tensors_of.cache_clear()
    first_few, first_many = (calls(saving(one, tmp_path / "x")) for one in (few, many))
    later_many = calls(saving(many, tmp_path / "x"))
    assert first_many < 11 * first_few
    assert first_many < 4 * later_many


def test_state_that_grows_costs_what_it_adds(tmp_path: Path) -> None:
    history: dict[str, Any] = {"array": np.zeros(1), "list": [0.5]}
    checkpoint = fv.Checkpoint(variables=variables(2000), history=history)
    checkpoint.save(tmp_path / "x")
    same = calls(saving(checkpoint, tmp_path / "x"))
    for _ in range(3):
        history["array"] = np.zeros(10 * history["array"].size)
        history["list"] += [0.5] * 10
        history[str(len(history))] = np.zeros(3)
        assert calls(saving(checkpoint, tmp_path / "x")) < 1.1 * same
        check_state(checkpoint, tmp_path / "x")


def check_state(checkpoint: fv.Checkpoint, path: Path) -> None:
    _, arrays, state, _ = checkpoint.collect()
    with reader.File(path) as file:
        assert file.state == state
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.read(name), array)


def test_an_asynchronous_save_makes_the_layout_in_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[threading.Thread] = []
    part = layout._Part.finish

    def finish(self: Any) -> None:
        made.append(threading.current_thread())
        part(self)

    monkeypatch.setattr(layout._Part, "finish", finish)
    layout.tensors_of.cache_clear()
    with fv.CheckpointManager(fv.Checkpoint(variables=variables(10)), tmp_path) as manager:
        manager.save(1, blocking=False)
        manager.wait()
    assert made
    assert threading.current_thread() not in made


def test_a_helper_leaves_most_of_the_time_to_others() -> None:
    """No pauses once someone waits for it. (Compare its own processor time with its pauses.)"""
    pauses: list[float] = []
    turns = iter(range(100_000))

    def work() -> None:
        for _ in workers.throttled(turns):
            if len(pauses) == 5:
                return

    helper = workers.Worker(work)
    helper.awaited.wait = lambda timeout=None: bool(pauses.append(timeout))  # type: ignore[method-assign, arg-type, assignment, func-returns-value]
    helper.start()
    helper.join()
    assert len(pauses) == 5
    assert min(pauses) >= 10 * workers._SLICE
    assert list(workers.throttled(range(3))) == [0, 1, 2]
    assert len(pauses) == 5


def test_who_waits_for_a_helper_need_not_wait_for_its_pauses(tmp_path: Path) -> None:
    background = fv.checkpoint.background.Background()
    seen: list[bool] = []
    hold = threading.Event()

    def task() -> None:
        hold.wait()
        helper = threading.current_thread()
        assert isinstance(helper, workers.Worker)
        seen.append(helper.awaited.wait())

    background.start(task)
    threading.Timer(0.01, hold.set).start()
    background.wait()
    assert seen == [True]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    layout.tensors_of.cache_clear()
