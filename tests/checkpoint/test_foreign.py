"""Files of other libraries are read exactly, and refused where they could do harm."""

from __future__ import annotations

import os
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import fastvar as fv
from fastvar.checkpoint import file_format, foreign, load_foreign, writer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's

NUMBERS = [np.dtype(name) for name in file_format.NATIVE]
SIZES = [(), (1,), (3, 5), (0,), (2, 0, 3)]


def bits(dtype: Any, shape: tuple[int, ...]) -> Any:
    dtype = np.dtype(dtype)
    count, high = int(np.prod(shape)) * dtype.itemsize, 2 if dtype.kind == "b" else 256
    return np.random.default_rng(0).integers(0, high, count).astype(np.uint8).view(dtype).reshape(shape)


def same(got: Any, expected: dict[str, Any]) -> None:
    assert sorted(got) == sorted(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name
        assert got[name].flags.c_contiguous


def every(dtypes: list[np.dtype[Any]]) -> dict[str, Any]:
    return {f"{t.name}/{len(s)}/{sum(s)}": bits(t, s) for t in dtypes for s in SIZES}


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True}, {"compression": "lzf"}, "big"])
def test_what_h5py_writes(options: Any, tmp_path: Path) -> None:
    arrays = every(NUMBERS) | {"large": bits("f4", (3 << 18,))}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array in arrays.items():
            if options == "big":
                file.create_dataset(name, data=array, dtype=array.dtype.newbyteorder(">"))
            else:
                file.create_dataset(name, data=array, **(options if array.size else {}) if array.ndim else {})
    same(load_foreign(tmp_path / "a.h5"), arrays)


def test_what_numpy_writes(tmp_path: Path) -> None:
    arrays = every(NUMBERS) | {"large": bits("f4", (3 << 18,))}
    np.savez(tmp_path / "a.npz", **arrays)
    same(load_foreign(tmp_path / "a.npz"), arrays)
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    same(load_foreign(tmp_path / "b.npz"), arrays)
    turned = {"f": np.asfortranarray(bits("f4", (3, 4, 5))), "big": np.arange(5, dtype=">i8")}
    np.savez(tmp_path / "c.npz", **turned)
    expected = {"f": np.ascontiguousarray(turned["f"]), "big": np.arange(5, dtype="i8")}
    same(load_foreign(tmp_path / "c.npz"), expected)


def test_what_safetensors_writes(tmp_path: Path) -> None:
    names = foreign.safetensors.NAMES.values()
    arrays = every([np.dtype(getattr(ml_dtypes, name, name)) for name in names])
    safetensors.numpy.save_file(arrays, tmp_path / "a", metadata={"format": "np"})
    same(load_foreign(tmp_path / "a"), arrays)


def keras_model() -> Any:
    layers = [keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    return keras.Sequential(layers)


def test_weights_of_keras_are_imported_by_prefix(tmp_path: Path) -> None:
    model = keras_model()
    model.save_weights(tmp_path / "m.weights.h5")
    zeros = [[fv.Variable(np.zeros(w.shape, np.float32)) for w in layer.weights] for layer in model.layers]
    net = {f"layer{i}": variables for i, variables in enumerate(zeros)}
    names = {"layer0": "layers/dense", "layer1": "layers/batch_normalization", "layer2": "layers/dense_1"}
    checkpoint = fv.Checkpoint(net)
    restored = checkpoint.import_weights(
        tmp_path / "m.weights.h5", name_map={key: f"{name}/vars" for key, name in names.items()}
    )
    assert len(restored.taken) == 8
    assert restored.missing + restored.skipped == []
    for index, layer in enumerate(net.values()):
        for v, weight in zip(layer, model.layers[index].weights, strict=True):
            np.testing.assert_array_equal(v.value, weight.numpy())


def test_slots_of_keras_are_imported_where_a_mapping_names_them(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)
    for i, v in enumerate(optimizer.variables[2:]):
        v.assign(np.full(v.shape, i + 2.0))
    model.compile(optimizer)
    model.save(tmp_path / "m.keras")
    weights = zipfile.ZipFile(tmp_path / "m.keras").read("model.weights.h5")
    (tmp_path / "m.h5").write_bytes(weights)
    assert load_foreign(tmp_path / "m.h5")["optimizer/vars/2"].shape == (3, 1)
    w, ours = fv.Variable(np.zeros((3, 1), np.float32), name="w"), fv.optimizers.Adam()
    ours.build([w])
    moments = dict(zip(ours._state.slots, ["optimizer/vars/2", "optimizer/vars/3"], strict=True))
    name_map = {"w": "layers/dense/vars/0"} | {f"optimizer/w/{slot}": name for slot, name in moments.items()}
    checkpoint = fv.Checkpoint(variables=[w], optimizer=ours)
    checkpoint.import_weights(tmp_path / "m.h5", partial=True, name_map=name_map)
    assert [float(ours.slot(w, slot)[0, 0]) for slot in moments] == [2.0, 3.0]
    with pytest.raises(fv.CheckpointError, match=r"of a \.keras file, import"):
        load_foreign(tmp_path / "m.keras")


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_dtypes_are_converted_if_nothing_is_lost_or_on_request(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", w=np.array([0.1, 2.0]))
    w = fv.Variable(np.zeros(2, np.float32))
    checkpoint = fv.Checkpoint(w=w)
    with pytest.raises(ValueError, match=r"w: float32\[2\] here, float64\[2\] in the file\n.*cast=True"):
        checkpoint.import_weights(path)
    restored = checkpoint.import_weights(path, cast=True)
    assert w.value.tolist() == np.float32([0.1, 2.0]).tolist()
    assert restored.notes == ["w: float64 in the file, float32 here"]
    wide = fv.Variable(np.zeros(2))
    fv.Checkpoint(w=wide).import_weights(saved(tmp_path / "b.npz", w=np.float32([0.1, 2.0])))
    assert wide.value.tolist() == [float(np.float32(0.1)), 2.0]
    with pytest.raises(ValueError, match=r"int64"):  # 2**53 + 1 is no float64
        fv.Checkpoint(w=wide).import_weights(saved(tmp_path / "c.npz", w=np.arange(2)))
    counts = fv.Variable(np.zeros(2, np.int32), trainable=False)
    with pytest.raises(ValueError, match="float64"):  # never truncate a fraction
        fv.Checkpoint(w=counts).import_weights(path, cast=True)


@pytest.mark.parametrize(("number", "here"), [(1e300, "f4"), (2**40, "i4"), (-1, "u4")])
def test_numbers_that_are_too_large_are_refused(number: Any, here: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", w=np.array([number]))
    w, v = fv.Variable(np.ones(1, here), trainable=False), fv.Variable(np.ones(1))
    with pytest.raises(ValueError, match="too large for"):
        fv.Checkpoint(v=v, w=w).import_weights(path, cast=True, partial=True)
    assert w.value[0] == 1


def test_an_import_takes_all_or_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", a=np.ones(2), b=np.ones(3), extra=np.ones(1))
    a, b = fv.Variable(np.zeros(2)), fv.Variable(np.zeros(2))
    with pytest.raises(ValueError, match="nothing was changed") as caught:
        fv.Checkpoint(a=a, b=b, c=fv.Variable(0.0)).import_weights(path)
    assert "mismatched: variables/b: float64[2] here, float64[3] in the file" in str(caught.value)
    assert "missing in the file: variables/c" in str(caught.value)
    assert "unexpected in the file: extra" in str(caught.value)
    assert not a.value.any()
    built = fv.optimizers.SGD(momentum=0.9)  # its slots are optional
    built.build([a])
    restored = fv.Checkpoint(a=a, optimizer=built).import_weights(path, partial=True)
    assert not restored.missing
    assert (restored.taken, restored.skipped) == (["variables/a"], ["b", "extra"])
    assert a.value.all()


def test_files_of_fastvar_are_restored_and_not_imported(tmp_path: Path) -> None:
    w = fv.Variable([1.0], name="w")
    path = fv.Checkpoint(variables=[w]).save(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="use restore"):
        fv.Checkpoint(variables=[w]).import_weights(path)
    with h5py.File(path, "r+") as file:
        file["variables/w"][...] = 5
    with pytest.raises(fv.CheckpointError):
        fv.Checkpoint(variables=[w]).restore(path)
    restored = fv.Checkpoint(variables=[w]).import_weights(path, edited=True)
    assert restored.notes == ["manifest: text", "state/json: text"]
    assert w[0] == 5


def test_a_restore_says_how_to_import(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = np.ones(1)
    for path in (tmp_path / "a.h5", saved(tmp_path / "b.npz", w=np.ones(1))):
        with pytest.raises(fv.CheckpointError, match=r"Checkpoint\.import_weights"):
            fv.Checkpoint(w=fv.Variable([0.0])).restore(path)


def test_bfloat16_in_plain_hdf5_as_fastvar_marks_it(tmp_path: Path) -> None:
    array = bits(ml_dtypes.bfloat16, (3, 5))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["marked"] = array.view(np.uint16)
        file["marked"].attrs["dtype"] = np.bytes_("bfloat16")
        file["plain"] = array.view(np.uint16)
        odd = ["bfloat16", np.array(b"bfloat16", "S100"), np.bytes_("nonsense"), np.bytes_("float8_e5m2"), 7]
        for index, value in enumerate(odd):
            file[f"odd{index}"] = array.view(np.uint16)
            file[f"odd{index}"].attrs["dtype"] = value
    expected = {name: array.view(np.uint16) for name in ["plain", *(f"odd{i}" for i in range(5))]}
    expected["marked"] = array
    same(load_foreign(tmp_path / "a.h5"), expected)


def test_soft_links_text_and_second_names_are_left_out_and_told(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = np.ones(2)
        file["again"] = file["w"]
        file["soft"] = h5py.SoftLink("/w")
        file["text"] = "hello"
        file["words"] = np.array(["a", "b"], h5py.string_dtype())
        file["empty"] = h5py.Empty("f4")
        file["kind"] = np.dtype("f4")
    with foreign.open_foreign(tmp_path / "a.h5") as opened:
        assert len(opened.entries) == 1
        notes = {note.partition(":")[0] for note in opened.notes}
    assert notes == {*({"w", "again"} - set(opened.entries)), "soft", "text", "words", "empty"}


def test_text_in_npz_is_left_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", w=np.ones(2), text=np.array(["a", "b"]), raw=np.array([b"a"]))
    w = fv.Variable([0.0, 0.0])
    assert fv.Checkpoint(w=w).import_weights(path).notes == ["text: text", "raw: text"]


def test_hdf5_behind_a_block_of_the_users(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a", "w", userblock_size=1024) as file:
        file["w"] = np.ones(2)
    assert load_foreign(tmp_path / "a")["w"].all()


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"w": np.ones(1 << 16)}, tmp_path / "a")
    with foreign.open_foreign(tmp_path / "a") as opened:
        os.truncate(tmp_path / "a", 80)
        with pytest.raises(fv.CheckpointError, match="'w' cannot be read: the file ends too early"):
            opened.read("w")


def test_a_large_file_is_read_a_tensor_at_a_time(tmp_path: Path) -> None:
    array = np.zeros(1 << 20, np.float32)
    np.savez(tmp_path / "a.npz", **{str(i): array for i in range(8)})
    safetensors.numpy.save_file({str(i): array for i in range(8)}, tmp_path / "a.safetensors")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i in range(8):
            file[str(i)] = array
    for suffix in ("npz", "safetensors", "h5"):
        tracemalloc.start()
        with foreign.open_foreign(tmp_path / f"a.{suffix}") as opened:
            for name in opened.entries:
                opened.read(name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.5 * array.nbytes, suffix


def test_errors_name_the_file_and_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.h5").write_bytes(file_format.HDF5_SIGNATURE + bytes(100))
    with pytest.raises(fv.CheckpointError) as caught:
        load_foreign(tmp_path / "bad.h5")
    assert re.fullmatch(r"\S+bad\.h5: cannot be imported as HDF5: [^\n]+", str(caught.value))
    writer.write(tmp_path / "ours", {"variables/w": np.ones(1)}, {}, step=0)
    with pytest.raises(ValueError, match=r"ours: written by fastvar"):
        load_foreign(tmp_path / "ours")
