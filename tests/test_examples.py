"""Run the examples, the README and the pages of docs/ as a new user does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import fastvar as fv
from tests.before import library
from tests.support.pages import BLOCKS, PAGES, ROOT

NEEDED = ("autograd", "jax", "keras", "matplotlib", "optax", "pandas", "safetensors", "sklearn", "torch", "tqdm")
if missing := [name for name in NEEDED if find_spec(name) is None]:
    pytest.skip(f"needs {', '.join(missing)}", allow_module_level=True)
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


def shell(script: Path, folder: Path) -> str:
    """Run a shell script of the repository with this Python, and return what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = ["bash", str(script), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_is_killed_resumed_inspected_and_converted(tmp_path: Path) -> None:
    pytest.importorskip("safetensors.torch")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    out = run("batch_norm.py", "--folder", str(whole), "--epochs", "4")
    assert "derivatives agree" in out
    accuracy = re.search(r"held-out accuracy ([\d.]+)%", out)[1]  # type: ignore[index]
    assert float(accuracy) > 93
    out = shell(ROOT / "examples" / "operations.sh", folder)
    assert "Resumed after epoch" in out
    assert "ckpt-4.h5: whole" in out
    assert f"In PyTorch: held-out accuracy {accuracy}%" in out
    for name, _ in fv.list_variables(latest(whole)):
        np.testing.assert_array_equal(
            fv.load_variable(latest(folder), name), fv.load_variable(latest(whole), name)
        )


def test_a_job_without_fastvar_is_killed_and_converted(tmp_path: Path) -> None:
    pytest.importorskip("safetensors.torch")
    out = shell(ROOT / "tests" / "before" / "operations.sh", tmp_path)
    assert "Resumed after epoch" in out
    assert re.search(r"In PyTorch: held-out accuracy 9\d", out)


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
    assert "LBFGS converged after" in out
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


def test_a_program_of_tensorflow_runs_step_by_step_and_continues(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert "Scaled: changed the rows [  7 500]" in run("tensorflow_steps.py", "--folder", folder, "--steps", "200")
    out = run("tensorflow_steps.py", "--folder", folder)
    assert "Restored step 200" in out
    assert "2 restored" in out
    trained, transferred = map(float, re.findall(r"ed: loss ([\d.]+)", out))
    assert trained < 1e-4
    assert transferred < 1e-2


def test_a_convolutional_network_continues_from_a_file_of_pytorch(tmp_path: Path) -> None:
    file = str(tmp_path / "cnn.pt")
    run("cnn_torch.py", "--file", file, "--epochs", "1", "--torch")
    out = run("cnn_torch.py", "--file", file, "--epochs", "3")
    assert "Resumed after epoch 1" in out
    assert float(re.search(r"fastvar.torch.optim: held-out accuracy ([\d.]+)%", out)[1]) > 93  # type: ignore[index]


def test_a_library_is_built_and_its_rule_has_all_options(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "examples" / "library", tmp_path / "library")
    build = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    (wheel,) = folder.glob("dist/*.whl")
    assert len([*folder.glob("dist/*.tar.gz")]) == 1
    code = """
import fastvar as fv, normalized_steps
w = fv.Variable([1.0, -1.0])
optimizer = normalized_steps.NormalizedSteps(0.1, clipnorm=1.0, use_ema=True)
for _ in range(20):
    optimizer.apply([w.value.copy()], [w])
assert abs(w.value).max() < 0.5, w
print(fv.Checkpoint(w=w, optimizer=optimizer).save("a.h5"))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(wheel), *sys.path])}
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    assert process.returncode == 0


def test_the_cells_of_the_notebook_run(tmp_path: Path) -> None:
    """The notebook is kept without outputs. The last expression of a cell is shown, as Jupyter does."""
    cells = json.loads((ROOT / "examples" / "notebook.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    code = f"""
import ast
names = {{}}
for cell in {["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]!r}:
    *first, last = ast.parse(cell).body
    exec(compile(ast.Module(first, []), "cell", "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), "cell", "exec"), names)
        continue
    shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    if shown is not None and not cell.rstrip().endswith(";"):
        print(type(shown).__name__, len(shown._repr_html_()))
"""
    places = [str(ROOT / "examples"), str(ROOT), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    shown = [line.split()[0] for line in out.splitlines()]
    assert shown == [
        "MLP",
        "AdamW",
        "GradientCheck",
        "History",
        "CheckpointManager",
        "Variable",
        "Restored",
        "held-out",
    ]
    assert float(re.search(r"accuracy ([\d.]+)%", out)[1]) > 94  # type: ignore[index]


def test_the_table_of_lines_is_right() -> None:
    command = [sys.executable, "tools/lines.py"]
    table = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert table in PAGES["examples.md"].read_text()


def test_every_example_is_listed() -> None:
    page = PAGES["examples.md"].read_text()
    names = [path.name for path in (ROOT / "examples").iterdir() if path.name not in ("mlp.py", "__pycache__")]
    assert [name for name in names if f"`{name}" not in page] == []


BEFORE = {  # the programs without fastvar, and what they print
    "batch_norm": (["--epochs", "3"], r"accuracy 9\d"),
    "evolution": (["--generations", "20"], r"up for (2[5-9]\d|300) of 300"),
    "factorisation": (["--steps", "2000"], r"After: error 0\.[0-2]"),
    "notebook": ([], r"held-out accuracy 9\d"),
    "oscillator": (["--steps", "2000"], r"Adam: amplitude 2\.0\d\d, damping 0\.30"),
}


@pytest.mark.parametrize("name", sorted(BEFORE))
def test_a_program_without_fastvar_does_the_same(name: str, tmp_path: Path) -> None:
    arguments, expected = BEFORE[name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", f"tests.before.{name}", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout)


def test_a_rule_without_fastvar_takes_the_same_steps() -> None:
    sys.path.insert(0, str(ROOT / "examples" / "library"))
    try:
        from normalized_steps import NormalizedSteps
    finally:
        sys.path.pop(0)
    options = {"weight_decay": 0.1, "global_clipnorm": 1.0}
    ours, theirs = [fv.Variable([1.0, -1.0]), fv.Variable([[2.0]])], [np.array([1.0, -1.0]), np.array([[2.0]])]
    optimizer, plain = NormalizedSteps(0.1, **options), library.NormalizedSteps(theirs, 0.1, **options)
    for _ in range(20):
        optimizer.apply([w.value.copy() for w in ours], ours)
        plain.apply([w.copy() for w in theirs])
    for w, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(w.value, expected, rtol=1e-12)


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
