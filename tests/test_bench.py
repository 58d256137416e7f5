"""The benchmarks cover every rule, and the contenders compute the same."""

from pathlib import Path

import numpy as np
import pytest
from rich.table import Table

import fastvar as fv
from bench import formats_convergence, overhead, plot, small, torch_optim, torch_train
from bench.cases import ALGORITHMS, CASES, CLIP_DECAY_EMA, Case
from bench.contenders import FASTVAR, contenders, threads
from bench.measure import interleaved, ratio
from fastvar import kernels

SMALLEST = [Case(each, "float32", (1, 64), 1) for each in (*ALGORITHMS, CLIP_DECAY_EMA)]


def test_every_rule_has_a_row() -> None:
    assert {case.algorithm.kernel for case in CASES} == set(kernels.RULES)


@pytest.mark.parametrize("case", SMALLEST, ids=lambda case: case.id)
def test_contenders_compute_the_same(case: Case) -> None:
    made = contenders(case)
    (start,) = (w.copy() for w in made[FASTVAR][1])
    with threads(1):
        for run, _ in made.values():
            run(5)
    expected = made[FASTVAR][1][0] - start
    for name, (_, weights) in made.items():
        for w in weights:
            np.testing.assert_allclose(w - start, expected, rtol=1e-4, atol=1e-7, err_msg=name)


def test_contenders_can_be_measured() -> None:
    runs = {name: run for name, (run, _) in contenders(SMALLEST[0]).items()}
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


def test_the_plot_is_drawn_from_measurements(tmp_path: Path) -> None:
    ratios = plot.measured([(1, 64), (2, 8)], rounds=2)
    assert [len(row) for row in ratios.values()] == [3, 3]
    assert min(min(row.values()) for row in ratios.values()) > 0
    assert [*ratios] == ["1 x 64", "2 x 8"]
    plot.draw({"1 x 64": dict.fromkeys(plot.OTHERS, 123.4)}, tmp_path / "speed.svg")
    drawn = (tmp_path / "speed.svg").read_text()
    assert drawn.count(">123<") == 3
    assert all(f">{text}<" in drawn for text in ("1 x 64", *plot.OTHERS.values()))


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
