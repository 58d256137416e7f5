"""Run the examples, the README and the pages of docs/ as a new user does."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fastvar as fv
from tests.support.pages import BLOCKS, PAGES, ROOT

EPOCHS = "12"


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Make started programs handle SIGINT, which shells let background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(script: str, *arguments: str) -> str:
    process = start(script, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def latest(folder: Path) -> str:
    checkpoint = fv.Checkpoint(w=fv.Variable(0.0))
    return str(fv.CheckpointManager(checkpoint, folder).latest_checkpoint)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A complete run of examples/digits.py, and its output."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, run("digits.py", "--folder", str(folder), "--epochs", EPOCHS)


def test_digits_are_learnt(trained: tuple[Path, str]) -> None:
    folder, out = trained
    accuracy = float(re.search(r"Held-out accuracy ([\d.]+)%", out)[1])  # type: ignore[index]
    assert accuracy >= 97
    assert re.search(r"In the optimizer: [\d.]+ s with fastvar, [\d.]+ s with NumPy", out)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_resumes_bit_for_bit(trained: tuple[Path, str], tmp_path: Path) -> None:
    for attempt in range(9):  # on a busy machine, the run may be over before it can be interrupted
        folder = tmp_path / str(attempt)
        process = start("digits.py", "--folder", str(folder), "--epochs", EPOCHS)
        while len(list(folder.glob("ckpt-*.h5"))) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
        if process.returncode != 0:
            break
    assert process.returncode == 130, err
    assert "run the same command again to resume" in out
    assert "Resumed after epoch" in run("digits.py", "--folder", str(folder), "--epochs", EPOCHS)
    whole, resumed = latest(trained[0]), latest(folder)
    names = [name for name, _ in fv.list_variables(whole)]
    assert names == [name for name, _ in fv.list_variables(resumed)]
    for name in names:
        np.testing.assert_array_equal(fv.load_variable(whole, name), fv.load_variable(resumed, name))


def test_fine_tuning_takes_the_body_by_name(trained: tuple[Path, str]) -> None:
    out = run("fine_tune.py", "--folder", str(trained[0]), "--epochs", "8")
    assert "4 restored" in out
    frozen, unfrozen = map(float, re.findall(r"([\d.]+)%", out))
    assert 85 < frozen < unfrozen


def test_a_job_is_killed_resumed_inspected_and_converted(tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    out = run("batch_norm.py", "--folder", str(whole), "--epochs", "4")
    assert "derivatives agree" in out
    assert float(re.search(r"held-out accuracy ([\d.]+)%", out)[1]) > 93  # type: ignore[index]
    process = start("batch_norm.py", "--folder", str(folder), "--epochs", "4")
    while not (list(folder.glob("ckpt-*.h5")) or process.poll()):
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=300)
    assert "Resumed after epoch" in run("batch_norm.py", "--folder", str(folder), "--epochs", "4")
    for name, _ in fv.list_variables(latest(whole)):
        np.testing.assert_array_equal(
            fv.load_variable(latest(folder), name), fv.load_variable(latest(whole), name)
        )
    command = [sys.executable, "-m", "fastvar"]
    table = subprocess.run([*command, "inspect", str(folder)], capture_output=True, text=True, check=True).stdout
    assert Path(latest(folder)).name in table
    target = tmp_path / "model.safetensors"
    options = ["--weights-only", "--names", "torch"]
    subprocess.run([*command, "convert", latest(folder), str(target), *options], capture_output=True, check=True)
    tensors = pytest.importorskip("safetensors.torch").load_file(target)
    assert {"head.kernel", "norm.mean"} <= tensors.keys()
    np.testing.assert_array_equal(tensors["head.kernel"], fv.load_variable(latest(folder), "head/kernel"))


def test_training_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    out = run("batch_norm.py", "--folder", str(tmp_path), "--epochs", "60", "--patience", "1")
    losses = [float(loss) for loss in re.findall(r"held-out loss ([\d.]+)", out)]
    assert len(losses) < 60
    assert losses[-1] >= min(losses) == losses[-2]
    checkpoint = fv.Checkpoint(w=fv.Variable(0.0))
    best = fv.CheckpointManager(checkpoint, tmp_path, monitor="loss").best_checkpoint
    assert str(best).endswith(f"ckpt-{len(losses) - 1}.h5")


def test_an_oscillation_is_fitted_in_bounds() -> None:
    out = run("oscillator.py", "--steps", "2000")
    assert "Result(converged=True" in out
    fits = re.findall(r"amplitude ([-\d.]+), damping ([-\d.]+), frequency ([-\d.]+), phase ([-\d.]+)", out)
    np.testing.assert_allclose(np.array(fits, float), [[2.0, 0.3, 5.0, 0.5]] * 2, atol=0.03)


def test_an_evolution_strategy_learns() -> None:
    assert float(re.search(r"up for (\d+) of 300", run("evolution.py", "--generations", "20"))[1]) > 250  # type: ignore[index]


def test_a_factorisation_predicts_ratings_that_were_held_out() -> None:
    before, after = map(float, re.findall(r"error ([\d.]+)", run("factorisation.py", "--steps", "2000")))
    assert after < before / 4


@pytest.mark.parametrize("script", [f"digits_{name}.py" for name in ("torch", "sklearn", "autograd", "jax")])
def test_a_framework_trains_the_same_with_both(script: str) -> None:
    out = run(script, "--epochs", "6")
    theirs, *ours = map(float, re.findall(r"accuracy ([\d.]+)%; [\d.]+ s, \d+% of it in the optimizer", out))
    assert ours
    assert min(theirs, *ours) > 85
    assert all(abs(theirs - each) < 2 for each in ours)


def test_keras_trains_the_same_with_both() -> None:
    out = run("digits_keras.py", "--epochs", "6")
    theirs, ours = map(float, re.findall(r"accuracy ([\d.]+)%", out))
    assert min(theirs, ours) > 85
    assert abs(theirs - ours) < 2


@pytest.mark.parametrize("page", sorted(name for name, blocks in BLOCKS.items() if blocks))
def test_the_code_of_a_page_runs_and_runs_again(page: str, tmp_path: Path) -> None:
    for _ in range(2):  # again in the same folder, which then has the checkpoints
        command = [sys.executable, "-c", "\n".join(BLOCKS[page])]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert process.returncode == 0, process.stderr


def test_the_pages_with_code_are_found() -> None:
    assert {
        "README.md",
        "variables.md",
        "optimizers.md",
        "checkpoints.md",
        "fine-tuning.md",
        "pytorch.md",
        "integrations.md",
        "gradients.md",
        "keras.md",
        "tensorflow.md",
    } <= set(PAGES)
    assert len(PAGES["README.md"].read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGES[page].read_text())
    missing = [link for link in links if not (PAGES[page].parent / link).is_file()]
    assert not missing


def test_info_tells_what_runs_here() -> None:
    command = [sys.executable, "-m", "fastvar", "info"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"instruction set +\w+ \(this processor runs baseline", out)
    assert re.search(r"threads +\d+ of at most \d+", out)
    assert "OpenMP" in out
