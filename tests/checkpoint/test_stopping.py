"""`manager.stopping` tells a preempted job to save and stop; without a manager, signals act as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import fastvar as fv
from tests.support.managers import manager, run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
SIGNALS = [signal.SIGTERM, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def unchanged() -> Any:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_told_and_the_process_lives(number: int, tmp_path: Path) -> None:
    with manager(tmp_path, fv.Variable([1.0])) as one:
        assert not one.stopping
        send(number)
        assert one.stopping
        assert one.save(1) is not None
        send(number)  # any number of times
    assert one.stopping
    with manager(tmp_path, fv.Variable([1.0])) as later:
        assert not later.stopping


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("way", ["entered", "restored"])
def test_a_preempted_job_saves_and_is_resumed(number: str, way: str, tmp_path: Path) -> None:
    code = """
import fastvar as fv, sys, time
w = fv.Variable(0.0, name="w")
manager = fv.CheckpointManager(fv.Checkpoint(variables=[w]), sys.argv[1])
if sys.argv[2] == "entered":
    manager.__enter__()
manager.restore_or_initialize()
print("begins", manager.stopping, flush=True)
while not manager.stopping:
    w += 1.0
    time.sleep(0.001)
manager.save(blocking=False)
manager.close()
print(float(w), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), way], stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "begins False\n"
        job.send_signal(getattr(signal, number))
        last = float(job.stdout.readline())
        assert job.wait(60) == 0
    w = fv.Variable(-1.0, name="w")
    with fv.CheckpointManager(fv.Checkpoint(variables=[w]), tmp_path) as one:
        one.restore_or_initialize()
    assert w == last


def test_what_handled_the_signal_before_is_still_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with (
            manager(tmp_path / "a", fv.Variable([1.0])) as one,
            manager(tmp_path / "b", fv.Variable([1.0])) as two,
        ):
            send(signal.SIGTERM)
            assert (one.stopping, two.stopping, seen) == (True, True, [signal.SIGTERM])
            two.close()
            send(signal.SIGTERM)
            assert len(seen) == 2
        send(signal.SIGTERM)
        assert len(seen) == 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_who_listens_later_and_stops_later(tmp_path: Path) -> None:
    """The program installs its own handler over the manager's, and calls that."""
    w, seen = fv.Variable([1.0]), []
    with manager(tmp_path / "a", w) as one:
        before = signal.getsignal(signal.SIGTERM)

        def own(number: int, frame: Any) -> None:
            seen.append(number)
            before(number, frame)  # type: ignore[operator, misc]

        signal.signal(signal.SIGTERM, own)
        with manager(tmp_path / "b", w) as two:
            send(signal.SIGTERM)
            assert (one.stopping, two.stopping, len(seen)) == (True, True, 1)
        assert signal.getsignal(signal.SIGTERM) is not before  # ours or theirs, never removed
        send(signal.SIGTERM)
        assert len(seen) == 2
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("how", ["never", "closed", "collected", "closed in a thread", "forked", "buried"])
def test_where_no_manager_listens_a_signal_ends_the_process(how: str, number: str, tmp_path: Path) -> None:
    code = """
import signal, threading, time, gc
number = getattr(signal, sys.argv[3])
manager = fv.CheckpointManager(fv.Checkpoint(w=fv.Variable([1.0])), sys.argv[1])
manager.restore_or_initialize()
how = sys.argv[2]
if how != "never":
    assert not manager.stopping
if how == "closed":
    manager.close()
if how == "collected":
    del manager
    gc.collect()
if how == "closed in a thread":
    thread = threading.Thread(target=manager.close)
    thread.start()
    thread.join()
if how == "buried":
    ours = signal.getsignal(number)
    signal.signal(number, lambda *arguments: ours(*arguments))
    manager.close()
if how == "forked":
    manager.__enter__()
    child = os.fork()
    if child:
        os.kill(child, number)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number
        assert not manager.stopping
        manager.close()
    else:
        time.sleep(20)
os.kill(os.getpid(), number)
time.sleep(20)
"""
    done = run(code, tmp_path, how, number)
    assert done.returncode == -getattr(signal, number), done.stderr


def test_a_child_that_trains_can_listen_itself(tmp_path: Path) -> None:
    code = """
import signal
with fv.CheckpointManager(fv.Checkpoint(w=fv.Variable([1.0])), sys.argv[1]) as manager:
    child = os.fork()
    if not child:
        assert not manager.stopping
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(7 if manager.stopping else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not manager.stopping
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_in_a_thread_one_is_told_that_signals_need_the_main_one(tmp_path: Path) -> None:
    w, said = fv.Variable([1.0]), []

    def work() -> None:
        with manager(tmp_path / "a", w) as one:
            one.save(1)
            try:
                said.append(one.stopping)
            except RuntimeError as error:
                said.append(str(error))

    def start() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    start()
    assert "main thread" in str(said.pop())
    with manager(tmp_path / "b", w):  # it handles signals
        start()
    assert said == [False]


def test_signals_that_come_all_the_time_while_managers_come_and_go(tmp_path: Path) -> None:
    """Send signals from another process, at any time, to a process that always has a manager."""
    with manager(tmp_path / "outer", fv.Variable([1.0])):
        code = f"import os, time\nfor _ in range(200):\n    os.kill({os.getpid()}, 15)\n    time.sleep(0.001)"
        with subprocess.Popen([sys.executable, "-c", code]) as sender:
            count = 0
            while sender.poll() is None:
                with manager(tmp_path / "inner", fv.Variable([1.0]), max_to_keep=1) as one:
                    one.save(count)
                    count += 1
                    time.sleep(0.002)
                    told = one.stopping
        assert told or count > 1
        assert len(one.checkpoints) == 1
