"""The benchmarks cover every rule, and the contenders compute the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table

import fastvar as fv
from bench import (
    compare,
    formats_convergence,
    overhead,
    report,
    run,
    small,
    suite,
    tasks,
    torch_optim,
    torch_train,
)
from bench.__main__ import RATIOS, main
from fastvar import kernels
from fastvar.benchmark import contenders, picture
from fastvar.benchmark.cases import ALGORITHMS, CLIP_DECAY_EMA, Case
from fastvar.benchmark.contenders import FASTVAR, NAMES, threads
from fastvar.benchmark.contest import repeated
from fastvar.benchmark.measure import interleaved, ratio

SMALLEST = [Case(each, "float32", (1, 64), 1) for each in (*ALGORITHMS, CLIP_DECAY_EMA)]


def test_every_rule_has_a_row() -> None:
    assert {each.kernel for each in ALGORITHMS} == set(kernels.RULES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras with NumPy
@pytest.mark.parametrize("case", SMALLEST, ids=lambda case: case.id)
def test_contenders_compute_the_same(case: Case) -> None:
    made = contenders.contenders(case, [name for name in NAMES if name != "torch compiled"])
    (start,) = (w.copy() for w in made[FASTVAR].weights())
    with threads(1):
        for each in made.values():
            for _ in range(5):
                each.step()
    expected = made[FASTVAR].weights()[0] - start
    assert np.abs(expected).max() > 1e-7
    for name, each in made.items():
        for w in each.weights():
            np.testing.assert_allclose(w - start, expected, rtol=1e-4, atol=1e-7, err_msg=name)


def test_contenders_can_be_measured() -> None:
    runs = {name: repeated(made.step) for name, made in contenders.contenders(SMALLEST[0], suite.FEW).items()}
    assert [*runs] == [*suite.FEW]
    times = interleaved(runs, rounds=2, seconds=1e-5)
    assert all(len(took) == 2 and min(took) > 0 for took in times.values())
    assert ratio(times[FASTVAR], times[FASTVAR]) == 1


def test_overhead_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "ROUNDS", 1)
    table = Table()
    overhead.one_variable(table)
    overhead.further_variables(table)
    assert table.row_count > 6


def test_saves_of_small_tensors_can_be_measured() -> None:
    with threads(1):
        found = small.blocking(fv, 30) | small.background(fv, 30)
    assert len(found) == 6
    assert np.isfinite([*found.values()]).all()


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_steps_on_tensors_can_be_measured(name: str) -> None:
    times = torch_optim.measured(name, 3, 10, rounds=2)
    fused = ["fused"] if name == "Adam" else []
    assert [*times] == ["fastvar", "loaded", *fused, "default", "reading"]
    assert all(len(took) == 2 and min(took) > 0 for took in times.values())


@pytest.mark.parametrize("network", torch_train.NETWORKS)
def test_training_can_be_measured(network: str) -> None:
    times = torch_train.measured(torch_train.NETWORKS[network][0], rounds=2)
    assert [*times] == ["fastvar", "fused", "default"]
    assert all(len(took) == 2 and all(0 < step < whole for whole, step in took) for took in times.values())
    assert len(torch_train.row(times)) == 8


def test_networks_have_as_many_parameters_as_the_originals() -> None:
    sizes = {name: Case(ALGORITHMS[0], "float32", of, 1).elements for name, of in suite.networks().items()}
    assert sizes == {"dlrm": 12_781_473, "gpt2": 124_439_808, "mlp": 669_706, "resnet50": 25_557_032}


def test_names_of_tasks_differ_and_sets_include_each_other() -> None:
    smoke, standard, everything = ([task.id for task in make()] for make in suite.SETS.values())
    assert set(smoke) < set(standard) < set(everything)
    assert len(set(everything)) == len(everything)
    assert [*json.loads(RATIOS.read_text())] == smoke


@pytest.fixture(scope="module")
def records() -> list[tasks.Record]:
    """Return records of a step, quiet and busy, and of storage formats."""
    sizes = [(1, 4), (1, 64), (1, 2**10)]
    given = [suite.step(ALGORITHMS[2], "float32", shape, 1, names=suite.FEW) for shape in sizes]
    given.append(suite.step(ALGORITHMS[2], "float32", sizes[0], 1, True, names=suite.FEW))
    given.append(suite.Task("formats", "formats-2x64-1thr", 1))
    return [tasks.measured(task, 0.01) for task in given]


def test_records_have_rivals_limits_and_memory(records: list[tasks.Record]) -> None:
    for record in records[:4]:
        assert {*suite.FEW, *tasks.LIMITS} - {FASTVAR} == set(record["ratios"])
        assert min(record["seconds"].values()) > 0
        assert set(record["peak"]) == set(suite.FEW)
    assert len(records[4]["ratios"]) == 3


def test_a_rival_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case) -> None:
        raise RuntimeError("no kernel")

    broken = tuple(each._replace(prepare=fail) if each.name == "NumPy out=" else each for each in contenders.EVERY)
    monkeypatch.setattr(contenders, "EVERY", broken)
    record = tasks.measured(suite.step(ALGORITHMS[2], "float32", (1, 4), 1, names=suite.FEW), 0.01)
    assert record["left out"] == {"NumPy out=": "RuntimeError: no kernel"}


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "run.jsonl", []
    monkeypatch.setattr(tasks, "measured", lambda task, enough: done.append(task.id) or {"id": task.id})
    monkeypatch.setattr(run.os, "sched_setaffinity", lambda process, processors: None)
    wanted = [task.id for task in suite.smoke()]
    run.append(path, {"id": wanted[0]})
    with path.open("a") as file:
        file.write('{"id": "' + wanted[1])  # killed while it wrote
    run.work("smoke", "", path, 1, 0.01)
    assert done == wanted[1:]
    assert [record["id"] for record in run.read(path)] == wanted
    run.work("smoke", "", path, 1, 0.01)
    assert done == wanted[1:]


def write(path: Path, ratios: dict[str, dict[str, float]]) -> str:
    for name, row in ratios.items():
        run.append(path, {"id": name, "seconds": {FASTVAR: 1.0}, "ratios": row})
    return str(path)


def test_compare_finds_what_has_become_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {"a": {"NumPy": 8.0, "torch": 2.0, "limit": 0.9}, "b": {"NumPy": 4.0}}
    slower = {"a": {name: x / 1.3 for name, x in before["a"].items()}, "b": before["b"]}
    noisy = {"a": before["a"] | {"NumPy": 5.0}, "b": before["b"]}  # one rival was disturbed
    old, new, same = (write(tmp_path / f"{k}.jsonl", each) for k, each in enumerate((before, slower, noisy)))
    assert main(["compare", old, new]) == 1
    assert "SLOWER" in capsys.readouterr().out.splitlines()[3]
    assert main(["compare", old, old]) == main(["compare", old, same]) == 0
    assert main(["compare", old, new, "--margin", "0.3"]) == 0
    assert "SLOWER" not in capsys.readouterr().out


def test_a_machine_that_is_slower_changes_no_ratio() -> None:
    times = {FASTVAR: [1.0, 2.0, 1.5], "NumPy": [3.0, 5.0, 4.0]}
    slow = {name: [2 * t for t in took] for name, took in times.items()}
    fast, slowed = (compare.ratios([{"id": "a", **tasks.figures(each)}]) for each in (times, slow))
    assert not compare.fallen(compare.changes(fast, slowed))


def test_every_contender_has_a_colour_of_its_own(records: list[tasks.Record], tmp_path: Path) -> None:
    assert len({*picture.COLOURS}) == len(picture.COLOURS) >= len(NAMES)
    every = dict.fromkeys(NAMES, 2.0)
    more = [{**r, "seconds": every | r["seconds"], "ratios": every | r["ratios"]} for r in records[:4]]
    assert report.write(more, tmp_path) == 0


def test_a_report_has_tables_and_pictures(records: list[tasks.Record], tmp_path: Path) -> None:
    lines = [{"machine": run.machine()}, *records, {"id": "x", "failed": "its process ended with code -9"}]
    assert report.write(lines, tmp_path) == 0
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    for name in ("sizes", "contention", "formats"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"![{name}]({name}.svg)" in text
    assert page.count("<svg") == len([*tmp_path.glob("*.svg")])
    assert "src=" not in page
    assert "adam-float32-1x64-1thr" in page
    assert "Failed: x: its process ended with code -9." in text
    assert report.write([], tmp_path) == 1


def test_a_step_behind_is_named_with_its_reason(records: list[tasks.Record]) -> None:
    record = records[2] | {"ratios": {"torch fused": 0.98, "traffic limit": 0.95}}
    assert report.verdict(record) == "level with torch fused"
    record["ratios"]["traffic limit"] = 0.5
    record["seconds"] = {FASTVAR: 1.0, "traffic limit": 0.5}
    for fixed, in_cache, reason in (
        (0.4, 0.1, "40% is the cost of 1 variable"),
        (0.01, 0.98, "its arithmetic takes 98%"),
        (0.3, 0.65, "30% is the cost of 1 variable, its arithmetic takes 65%"),
        (0.05, 0.1, "45% is unexplained"),
    ):
        record |= {tasks.FIXED: fixed, tasks.IN_CACHE: in_cache}
        assert report.verdict(record) == f"behind torch fused; 0.50 of the limit: {reason}"
    assert report.summary([record])[0] == "fastvar is first in 0 of 1 step."


def test_roots_and_divisions_are_counted() -> None:
    adam, descent = (
        tasks.limit.operations(kernels.reference.RULES[name].block) for name in ("adam", "gradient_descent")
    )
    assert (adam, descent) == ((1, 1), (0, 0))


def test_formats_are_compared_with_every_optimizer() -> None:
    rows = {row.optimizer for row in formats_convergence.ROWS}
    without = {"LBFGS", "LossScaleOptimizer"}  # slots of their own
    for name in set(fv.optimizers.__all__) - without - rows:
        optimizer = getattr(fv.optimizers, name)(slot_dtype="8bit", slot_dtype_min_size=0)
        optimizer.build([fv.Variable(np.zeros(shape, np.float32)) for shape in ((16, 16), 256)])
        assert all(isinstance(slot, fv.Variable) for slot in optimizer.variables)  # all are exact


def test_formats_can_be_compared(tmp_path: Path) -> None:
    row = formats_convergence.ROWS[0]._replace(seeds=2, steps=3)
    found = formats_convergence.compared(row, "Zipf", kinds := [*formats_convergence.KINDS])
    assert [one.kind for one in found] == ["bfloat16", "8bit", "with a master", "without"] == kinds
    assert formats_convergence.table_of([row], found).row_count == 4
    formats_convergence.draw(found, tmp_path / "formats.svg", kinds[:2])
    drawn = (tmp_path / "formats.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("Adam", "bfloat16, Zipf", "8bit, digits"))


def test_the_bound_of_a_difference() -> None:
    losses = formats_convergence.Losses("Adam", "Zipf", "8bit", [1.5, 2.0, 3.5], [1.0, 2.0, 3.0])
    # mean 1/3, standard error 1/6, t 6.965 at 99 % with 2 degrees of freedom, spread 1
    assert losses.bound == pytest.approx(1 / 3 + 6.965 / 6, abs=1e-3)
