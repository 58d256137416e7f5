"""Checkpoint, CheckpointManager and Saver restore all that was saved, and refuse what does not fit."""

from __future__ import annotations

import gc
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastvar as fv
from tests.support.cases import CASES, IDS
from tests.support.training import Training


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("steps", np.random.default_rng().integers(0, 24, 3).tolist(), ids=lambda _: "random")
def test_a_resumed_run_equals_the_uninterrupted_one(case: Any, steps: int, tmp_path: Path) -> None:
    whole, first, second = Training(case), Training(case), Training(case)
    whole.train(24)
    first.train(steps)
    path = first.checkpoint.save(tmp_path / "run.h5")
    second.checkpoint.restore(path, partial=steps == 0)  # nothing is built yet at step 0
    second.train(24 - steps)
    assert second.everything() == whole.everything(), f"interrupted after {steps} steps"


def test_a_changed_learning_rate_comes_back(tmp_path: Path) -> None:
    first, second = (Training(CASES[0], schedule=False) for _ in range(2))
    first.train(2)
    first.optimizer.learning_rate = 0.5
    first.optimizer.groups[1].learning_rate = 0.25
    with pytest.warns(
        RuntimeWarning, match=r"optimizer\.learning_rate: 0\.125 here, 0\.5 in the file \("
    ) as warned:
        second.checkpoint.restore(first.checkpoint.save(tmp_path / "a.h5"))
    assert len(warned) == 1
    assert second.optimizer.learning_rate == 0.5
    assert second.optimizer.groups[1].learning_rate == 0.25


def test_a_schedule_that_is_a_function_stays_that_of_the_program(tmp_path: Path) -> None:
    w = fv.Variable([1.0], name="w")
    optimizer = fv.optimizers.SGD(lambda step: 1 / (1 + step))
    optimizer.apply([[1.0]], [w])
    path = fv.Checkpoint(w=w, optimizer=optimizer).save(tmp_path / "a.h5")
    again = fv.optimizers.SGD(lambda step: 1 / (1 + step))
    fv.Checkpoint(w=w, optimizer=again).restore(path)
    assert again.learning_rate == 0.5
    with pytest.raises(ValueError, match="learning_rate was a function"):
        fv.Checkpoint(w=w, optimizer=fv.optimizers.SGD(0.1)).restore(path)


def snapshot(training: Training) -> list[Any]:
    return [
        *(v.numpy().tobytes() for v in [training.w, training.b, *training.optimizer.variables]),
        training.optimizer._steps,
        training.rng.bit_generator.state,
        training.python.getstate(),
        str(training.data),
    ]


def test_a_damaged_file_changes_nothing(tmp_path: Path) -> None:
    first, second = Training(CASES[3]), Training(CASES[3])
    first.train(3)
    second.train(1)
    path = Path(first.checkpoint.save(tmp_path / "a.h5"))
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    before = snapshot(second)
    with pytest.raises(fv.CheckpointError, match=r"a\.h5"):
        second.checkpoint.restore(path)
    assert snapshot(second) == before


SIZES = [3, 0, 1 << 15, 1, 100, 8000, 0, 1 << 16, 7, 8000, 20]


def many(order: list[int], value: float) -> list[fv.Variable]:
    return [fv.Variable(np.full(SIZES[i], value), name=f"w{i}") for i in order]


@pytest.mark.parametrize("seed", range(5))
def test_tensors_come_back_in_any_order_and_number(seed: int, tmp_path: Path) -> None:
    path = fv.Checkpoint(variables=many([*range(len(SIZES))], 2.0)).save(tmp_path / "a.h5")
    order = np.random.default_rng(seed).permutation(len(SIZES))[: len(SIZES) - seed].tolist()
    variables = many(order, 1.0)
    restored = fv.Checkpoint(variables=variables).restore(path, partial=True)
    assert sorted(restored.taken) == sorted(f"variables/w{i}" for i in order)
    assert all((v.value == 2.0).all() for v in variables)


@pytest.mark.parametrize("victim", [0, 2, 4, 10])
def test_the_damaged_tensor_alone_is_named(victim: int, tmp_path: Path) -> None:
    variables = many([*range(len(SIZES))], 2.0)
    path = Path(fv.Checkpoint(variables=variables).save(tmp_path / "a.h5"))
    with fv.checkpoint.reader.File(path) as file:
        offset = file.entries[f"variables/w{victim}"].offset
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    here = many([*range(len(SIZES))], 1.0)
    with pytest.raises(fv.CheckpointError) as caught:
        fv.Checkpoint(variables=here).restore(path)
    assert caught.value.damaged == (f"variables/w{victim}",)
    assert all((v.value == 1.0).all() for v in here)


def test_restoring_needs_no_second_thread(tmp_path: Path, monkeypatch: Any) -> None:
    path = fv.Checkpoint(variables=many([2, 7], 2.0)).save(tmp_path / "a.h5")
    here = many([2, 7], 1.0)

    def none(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    fv.Checkpoint(variables=here).restore(path)
    assert all((v.value == 2.0).all() for v in here)


def test_garbage_is_collected_after_a_restore_as_before(tmp_path: Path) -> None:
    checkpoint = fv.Checkpoint(w=fv.Variable(1.0))
    path = checkpoint.save(tmp_path / "a.h5")
    for enabled in (False, True):
        (gc.enable if enabled else gc.disable)()
        checkpoint.restore(path)
        assert gc.isenabled() == enabled
        with pytest.raises(FileNotFoundError):
            checkpoint.restore(tmp_path / "none.h5")
        assert gc.isenabled() == enabled


def test_what_changes_between_verifying_and_reading_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    from fastvar.checkpoint import reader

    w = fv.Variable(np.ones(1 << 15))
    checkpoint = fv.Checkpoint(w=w)
    path = Path(checkpoint.save(tmp_path / "a.h5"))
    read_into = reader.File.read_into

    def damaged(file: Any, targets: Any) -> None:
        if targets:
            content = bytearray(path.read_bytes())
            content[file.entries["variables/w"].offset] ^= 1
            path.write_bytes(content)
        read_into(file, targets)

    monkeypatch.setattr(reader.File, "read_into", damaged)
    with pytest.raises(fv.CheckpointError, match=r"'variables/w'.* changed during the restore"):
        checkpoint.restore(path)


def test_one_error_lists_all_that_does_not_match(tmp_path: Path) -> None:
    saved = fv.Checkpoint(kernel=fv.Variable(np.ones(3)), bias=fv.Variable(1.0), old=fv.Variable(1.0))
    path = saved.save(tmp_path / "a.h5")
    kernel, bias = fv.Variable(np.zeros((3, 2))), fv.Variable(np.float32(0))
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        fv.Checkpoint(kernel=kernel, bias=bias, kernels=fv.Variable(0.0)).restore(path)
    message = str(caught.value)
    assert "variables/kernel: float64[3, 2] here, float64[3] in the file" in message
    assert "variables/bias: float32[] here, float64[] in the file" in message
    assert "missing in the file: variables/kernels (it has variables/kernel)" in message
    assert "unexpected in the file: variables/old" in message
    assert not kernel.any()


def test_partial_takes_what_fits_but_never_another_shape(tmp_path: Path) -> None:
    path = fv.Checkpoint(a=fv.Variable([1.0]), b=fv.Variable([2.0])).save(tmp_path / "a.h5")
    a, c = fv.Variable([0.0]), fv.Variable([0.0])
    restored = fv.Checkpoint(a=a, c=c).restore(path, partial=True)
    assert (restored.taken, restored.missing, restored.skipped) == (
        ["variables/a"],
        ["variables/c"],
        ["variables/b"],
    )
    assert (a[0], c[0]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="mismatched: variables/a"):
        fv.Checkpoint(a=fv.Variable([0.0, 0.0])).restore(path, partial=True)


@pytest.mark.parametrize(
    "name_map",
    [{"encoder": "body"}, {"encoder/kernel": "body/kernel"}, lambda name: name.replace("encoder", "body")],
    ids=["prefix", "name", "callable"],
)
def test_names_can_be_mapped_and_slots_follow(name_map: Any, tmp_path: Path) -> None:
    body, encoder = {"kernel": fv.Variable([1.0])}, {"kernel": fv.Variable([0.0])}
    optimizer, other = fv.optimizers.SGD(momentum=0.9), fv.optimizers.SGD(momentum=0.9)
    optimizer.apply([[1.0]], [body["kernel"]])
    other.build([encoder["kernel"]])
    path = fv.Checkpoint(body=body, optimizer=optimizer).save(tmp_path / "a.h5")
    fv.Checkpoint(encoder=encoder, optimizer=other).restore(path, partial=True, name_map=name_map)
    assert encoder["kernel"] == body["kernel"]
    assert other.variables[0] == optimizer.variables[0]


def test_an_unbuilt_optimizer_stays_unbuilt_if_the_restore_fails(tmp_path: Path) -> None:
    w = fv.Variable([1.0], name="w")
    optimizer = fv.optimizers.Adam()
    optimizer.apply([[1.0]], [w])
    path = fv.Checkpoint(variables=[w], optimizer=optimizer).save(tmp_path / "a.h5")
    fresh = fv.optimizers.Adam()
    with pytest.raises(ValueError, match="missing in the file: variables/x"):
        fv.Checkpoint(variables=[w], x=fv.Variable(1.0), optimizer=fresh).restore(path)
    assert not fresh.variables
    fresh.build([fv.Variable([1.0])])


@pytest.mark.parametrize("size", [10, 1 << 16])
def test_a_damaged_slot_leaves_an_unbuilt_optimizer_unbuilt(size: int, tmp_path: Path) -> None:
    w = fv.Variable(np.ones(size), name="w")
    optimizer = fv.optimizers.Adam()
    optimizer.apply([np.ones(size)], [w])
    path = Path(fv.Checkpoint(variables=[w], optimizer=optimizer).save(tmp_path / "a.h5"))
    good = path.read_bytes()
    with fv.checkpoint.reader.File(path) as file:
        offset = file.entries["optimizer/w/momentum"].offset
    path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
    here, fresh = fv.Variable(np.zeros(size), name="w"), fv.optimizers.Adam()
    checkpoint = fv.Checkpoint(variables=[here], optimizer=fresh)
    with pytest.raises(fv.CheckpointError, match=r"damaged tensors: 'optimizer/w/momentum' \(not"):
        checkpoint.restore(path)
    assert not fresh.variables
    assert not here.value.any()
    path.write_bytes(good)
    checkpoint.restore(path)
    assert fresh.iterations == 1
    assert all(np.array_equal(a, b) for a, b in zip(fresh.variables, optimizer.variables, strict=True))


def test_two_of_one_name_are_an_error() -> None:
    twins = [fv.Variable(1.0, name="w"), fv.Variable(2.0, name="w")]
    with pytest.raises(ValueError, match="two variables are named 'w'"):
        fv.Checkpoint(variables=twins)
    same = twins[0]
    fv.Checkpoint(a=same, b=[same])  # one variable, twice


def test_objects_without_names_are_refused() -> None:
    with pytest.raises(TypeError, match=r"name the objects: Checkpoint\(model=model"):
        fv.Checkpoint([fv.Variable(0.0)], fv.optimizers.SGD())  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", [3, "text", object(), np.zeros(2)], ids=["int", "str", "object", "array"])
def test_what_cannot_be_saved_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="thing= must be"):
        fv.Checkpoint(thing=thing)


def test_saver_has_the_signature_of_tensorflow_1(tmp_path: Path) -> None:
    w, b = fv.Variable([1.0], name="w"), fv.Variable([2.0])
    saver = fv.Saver([w, b], max_to_keep=2)
    paths = [saver.save(tmp_path / "model", global_step=step) for step in (1, 2, 3)]
    assert [Path(p).name for p in paths] == ["model-1.h5", "model-2.h5", "model-3.h5"]
    assert saver.last_checkpoints == paths[1:]
    assert not Path(paths[0]).exists()
    renamed = fv.Variable([0.0], name="other")
    fv.Saver({"w": renamed}).restore(paths[2], partial=True)
    assert renamed[0] == 1
    assert fv.list_variables(paths[2]) == [("variables/w", (1,)), ("variables/1", (1,))]
    assert fv.load_variable(paths[2], "w") == [1.0] == fv.load_variable(paths[2], "variables/w")
    assert Path(saver.save(tmp_path / "v1.5")).name == "v1.5.h5"


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    checkpoint = fv.Checkpoint(w=w)
    path = checkpoint.save(tmp_path / "new" / "folder" / "a.h5")
    with pytest.raises(FileExistsError, match=r"a\.h5"):
        checkpoint.save(path)
    w[...] = 2
    checkpoint.save(path, overwrite=True)
    assert fv.load_variable(path, "w") == 2


def test_state_is_kept_apart_whatever_its_keys_are(tmp_path: Path) -> None:
    state = {"a/b": np.zeros(2), "a": {"b": np.ones(2), "": np.full(2, 2.0)}, "n": np.float32(3)}
    checkpoint = fv.Checkpoint(state=state)
    path = checkpoint.save(tmp_path / "a.h5")
    state.clear()
    checkpoint.restore(path)
    assert [state["a/b"][0], state["a"]["b"][0], state["a"][""][0], state["n"]] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="reserved"):
        fv.Checkpoint(state={"x": {"$array": "hello"}}).save(tmp_path / "b.h5")


@pytest.mark.parametrize("thing", [[1, 2], {"epoch": 7, "ema": fv.Variable(1.0)}], ids=["list", "mixed"])
def test_state_that_would_be_dropped_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="history= must hold either variables"):
        fv.Checkpoint(history=thing)


def test_partial_never_mixes_two_optimizers(tmp_path: Path) -> None:
    w = fv.Variable([1.0], name="w")
    adam, sgd = fv.optimizers.Adam(), fv.optimizers.SGD(momentum=0.9)
    adam.apply([[1.0]], [w])
    sgd.build([w])
    path = fv.Checkpoint(w=w, optimizer=adam).save(tmp_path / "a.h5")
    restored = fv.Checkpoint(w=w, optimizer=sgd).restore(path, partial=True)
    assert restored.taken == ["variables/w"]
    assert "class Adam" in restored.refused[0]
    assert not sgd.slot(w, "momentum").any()


@pytest.mark.parametrize("build", [True, False])
def test_a_name_map_reaches_the_optimizer(build: bool, tmp_path: Path) -> None:
    w, kernel = fv.Variable([1.0]), fv.Variable([0.0])
    first, second = fv.optimizers.Adam(), fv.optimizers.Adam()
    first.apply([[1.0]], [w])
    if build:
        second.build([kernel])
    path = fv.Checkpoint(w=w, optimizer=first).save(tmp_path / "a.h5")
    fv.Checkpoint(kernel=kernel, optimizer=second).restore(path, name_map={"kernel": "w"})
    assert second.iterations == 1
    assert second.slot(kernel, "momentum") == first.slot(w, "momentum")


def test_an_object_that_refuses_its_state_leaves_all_as_it_was(tmp_path: Path) -> None:
    class Stubborn:
        def state_dict(self) -> dict[str, Any]:
            return {"x": 1}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise RuntimeError("no")

    w = fv.Variable([1.0])
    checkpoint = fv.Checkpoint(w=w, stubborn=Stubborn())
    path = checkpoint.save(tmp_path / "a.h5")
    w[...] = 9
    with pytest.raises(RuntimeError, match="no"):
        checkpoint.restore(path)
    assert w[0] == 9


def test_saver_takes_the_path_without_its_ending(tmp_path: Path) -> None:
    w = fv.Variable([1.0])
    saver = fv.Saver({"w": w})
    saver.save(tmp_path / "model", global_step=3)
    assert saver.restore(tmp_path / "model-3").step == 3
    with pytest.raises(ValueError, match="listed twice"):
        fv.Saver({"a": w, "b": w})
    with pytest.raises(TypeError, match=r"fastvar\.Variable"):
        fv.Saver([w, 3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda s, path: fv.Saver(), r"var_list is missing.*Saver\(\[w, b\]\)"),
        (lambda s, path: s.save(None, path), "no sessions.*save.path"),
        (lambda s, path: s.save(None, path, global_step=3), "no sessions.*save.path"),
        (lambda s, path: s.save(None, path, 3), "no sessions.*save.path"),
        (lambda s, path: s.save(None), "no sessions.*save.path"),
        (lambda s, path: s.restore(None, path), "no sessions.*restore.path"),
    ],
)
def test_saver_says_what_differs_from_tensorflow(call: Any, wanted: str, tmp_path: Path) -> None:
    saver = fv.Saver([fv.Variable([1.0], name="w")])
    with pytest.raises(TypeError, match=wanted):
        call(saver, str(tmp_path / "model"))
    assert not [*tmp_path.iterdir()]


def test_tensors_are_found_by_the_path_given_to_saver(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    fv.Saver([fv.Variable([1.0], name="w")]).save(path)
    assert fv.list_variables(path) == [("variables/w", (1,))]
    assert fv.load_variable(path, "w") == [1.0]
    with pytest.raises(FileNotFoundError, match=r"other\.ckpt'"):
        fv.list_variables(tmp_path / "other.ckpt")


@pytest.mark.parametrize("name", ["model.ckpt", "model", "model.h5", "mo[d]el"])
def test_a_path_without_its_step_is_answered_by_the_steps_that_there_are(name: str, tmp_path: Path) -> None:
    w = fv.Variable([1.0], name="w")
    saver, path = fv.Saver([w]), tmp_path / name
    for step in (7, 12):
        saver.save(path, global_step=step)
    stem = re.escape(name.removesuffix(".h5"))
    for read in (fv.list_variables, saver.restore, lambda p: fv.load_variable(p, "w")):
        with pytest.raises(FileNotFoundError, match=rf"with a step there are {stem}-12\.h5, {stem}-7\.h5: "):
            read(path)
    assert saver.restore(f"{str(path).removesuffix('.h5')}-7").step == 7


def test_a_file_of_pytorch_is_called_so(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(3)}, path)
    checkpoint = fv.Checkpoint(w=fv.Variable(np.zeros(3)))
    for read in (checkpoint.restore, checkpoint.import_weights, fv.list_variables, fv.checkpoint.inspect):
        with pytest.raises(fv.CheckpointError, match=r"torch\.save wrote it.*safetensors\.torch\.save_file"):
            read(path)
