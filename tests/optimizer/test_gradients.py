"""`minimize` with gradients from autograd, JAX and PyTorch, beside gradients by hand."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest

import fastvar as fv

LIBRARIES = ["autograd", "jax", "torch"]


def tree(dtype: Any = np.float32) -> dict[str, Any]:
    start = np.arange(1, 4, dtype=dtype)
    return {
        "z": {"kernel": fv.Variable(start)},
        "a": [fv.Variable(start * 2), fv.Variable(start, trainable=False)],
    }


def loss(p: Any) -> Any:
    return (p["z"]["kernel"] ** 2 * p["a"][1]).sum() + (p["a"][0] ** 3).sum()


def by_hand(p: Any) -> Any:
    kernel, (first, frozen) = p["z"]["kernel"].value, p["a"]
    return {"z": {"kernel": 2 * kernel * frozen.value}, "a": [3 * first.value**2, None]}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", [fv.optimizers.SGD, fv.optimizers.Adam])
def test_steps_are_those_of_gradients_by_hand(kind: Any, library: str) -> None:
    ours, hand = tree(), tree()
    first, second = kind(0.001), kind(0.001)
    for _ in range(5):
        value = first.minimize(loss, ours, gradients=library)
        assert value == pytest.approx(second.minimize(lambda: (loss(hand).item(), by_hand(hand)), hand), rel=1e-5)
    for a, b in [(ours["z"]["kernel"], hand["z"]["kernel"]), *zip(ours["a"], hand["a"], strict=True)]:
        np.testing.assert_allclose(a.value, b.value, rtol=1e-5)
    assert ours["z"]["kernel"].name == "z/kernel"


@pytest.mark.parametrize("library", LIBRARIES)
def test_lbfgs_and_variables_of_build(library: str) -> None:
    w = fv.Variable(np.full(3, 4.0, np.float32))
    optimizer = fv.optimizers.LBFGS()
    optimizer.build([w])
    assert optimizer.minimize(lambda p: (p[0] ** 2).sum(), gradients=library) < 1e-6


@pytest.mark.parametrize("library", ["jax", "torch"])
def test_arrays_that_a_loss_keeps_do_not_see_the_step(library: str) -> None:
    kept: list[Any] = []
    w = fv.Variable(np.ones(100_000, np.float32))

    def keeping(p: Any) -> Any:
        kept.append(p[1])
        return (p[0] ** 2 * p[1]).sum()

    frozen = fv.Variable(np.ones(100_000, np.float32), trainable=False)
    fv.optimizers.SGD(0.25).minimize(keeping, [w, frozen], gradients=library)
    assert (w.value == 0.5).all()
    frozen.assign(np.zeros(100_000, np.float32))
    assert bool((kept[0] == 1).all())


@pytest.mark.parametrize("share", ["device_put", "from_dlpack"])
def test_jax_shares_memory_unless_it_copies(share: str) -> None:
    """The trap of docs/gradients.md: what JAX shares sees steps; `minimize`, and the call of that page, copy."""
    import jax

    memory = np.zeros(1024 + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4  # JAX shares memory that begins at a multiple of 64 bytes
    w = fv.Variable(memory[first : first + 1024], copy=False)
    frozen = fv.Variable(w.value, trainable=False, copy=False)
    shared = {"device_put": jax.device_put, "from_dlpack": jax.dlpack.from_dlpack}[share](w.value)
    copied = jax.numpy.array(w.numpy())
    kept: list[Any] = []

    def keeping(p: Any) -> Any:
        kept.append(p[1])
        return p[0].sum()

    fv.optimizers.SGD().minimize(keeping, [fv.Variable([0.0], dtype="f4"), frozen], gradients="jax")
    fv.optimizers.SGD(0.25).apply([np.ones(1024, np.float32)], [w])
    assert bool((shared == -0.25).all())
    assert bool((copied == 0).all())
    assert bool((kept[0] == 0).all())


@pytest.mark.parametrize("kind", [fv.optimizers.SGD, fv.optimizers.Adam])
def test_compiled_losses_are_compiled_once(kind: Any) -> None:
    """JAX calls a compiled function only to trace it; its data are arguments, and are always the present ones."""
    import jax

    calls: list[Any] = []

    @jax.jit
    def scaled(p: Any, x: Any) -> Any:
        calls.append(x)
        return loss(p) * x

    ours, plain = tree(), tree()
    first, second = kind(0.001), kind(0.001)
    for t in range(6):
        if t == 4:
            ours["a"][1].assign([1, 1, 1])  # not trained, and no constant of the compiled function
            plain["a"][1].assign([1, 1, 1])
        x = np.float32(t + 1)
        value = first.minimize(partial(scaled, x=x), ours, gradients="jax")
        assert value == pytest.approx(second.minimize(lambda p, x=x: loss(p) * x, plain, gradients="jax"))
    for a, b in [(ours["z"]["kernel"], plain["z"]["kernel"]), *zip(ours["a"], plain["a"], strict=True)]:
        np.testing.assert_allclose(a.value, b.value, rtol=1e-6)
    assert len(calls) == 1


def test_compiled_losses_of_other_trees() -> None:
    """Another structure, shape or trained variable makes another compilation; one used twice counts twice."""
    import jax

    class Tied(fv.Module):
        def __init__(self, weight: fv.Variable) -> None:
            self.encoder = self.decoder = weight

    square = jax.jit(lambda p: sum((array**2).sum() for array in jax.tree.leaves(p)))
    w, u = fv.Variable(np.ones(3, np.float32)), fv.Variable(np.ones(2, np.float32))
    for variables, value, (first, second) in [
        ([w, u], 5, (0.5, 0.5)),
        ({"a": w, "b": u}, 1.25, (0.25, 0.25)),
        (Tied(w), 0.375, (0.0, 0.25)),
    ]:
        assert fv.optimizers.SGD(0.25).minimize(square, variables, gradients="jax") == value
        assert (w.value == first).all()
        assert (u.value == second).all()
    w.trainable = False
    w.assign(np.ones(3))
    assert fv.optimizers.SGD(0.25).minimize(square, [w, u], gradients="jax") == 3.125
    assert ((w.value == 1).all(), (u.value == 0.125).all()) == (True, True)


def test_data_that_a_plain_loss_closes_over_may_change() -> None:
    for library in LIBRARIES:
        w, data = fv.Variable(np.zeros(2, np.float32)), [1.0]
        optimizer = fv.optimizers.SGD(0.5)
        for value in (1.0, 4.0):
            data[0] = value
            optimizer.minimize(lambda p, data=data: ((p[0] - data[0]) ** 2).sum(), [w], gradients=library)
            assert (w.value == value).all()


def test_float64_is_never_cast() -> None:
    for library in ("autograd", "torch"):
        w = fv.Variable([1.0 + 1e-12])
        fv.optimizers.SGD(0.25).minimize(lambda p: (p[0] ** 2).sum(), [w], gradients=library)
        assert w.value[0] == (1.0 + 1e-12) / 2
    with pytest.raises(TypeError, match="float64, which JAX would cast"):
        fv.optimizers.SGD().minimize(lambda p: p[0].sum(), [w], gradients="jax")


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    w = fv.Variable([1.0])
    optimizer = fv.optimizers.SGD()
    with pytest.raises(ValueError, match="must be one of 'autograd', 'jax', 'torch', got 'numpy'"):
        optimizer.minimize(lambda p: p[0].sum(), [w], gradients="numpy")
    with pytest.raises(TypeError, match="must be a function"):
        optimizer.minimize(3.0, [w], gradients="autograd")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "autograd", None)
    with pytest.raises(ImportError, match="pip install autograd"):
        optimizer.minimize(lambda p: p[0].sum(), [w], gradients="autograd")
    assert w.value == 1


G = np.ones(3)
OTHERS = {
    "a number": 3.0,
    "nothing": None,
    "three": [1.0, [G], 0],
    "one": (1.0,),
    "text": "ab",
    "array": np.ones(2),
}


def ways_to_evaluate() -> list[Any]:
    return [fv.optimizers.SGD().minimize, fv.optimizers.LBFGS().minimize, fv.check_gradients]


@pytest.mark.parametrize("found", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("k", range(3))
def test_a_function_that_returns_something_else(k: int, found: Any) -> None:
    w = fv.Variable(np.full(3, 2.0))
    with pytest.raises(TypeError, match=r"^\w+: value_and_grad must return \(loss, gradients\), got ") as error:
        ways_to_evaluate()[k](lambda: found, [w])
    assert ('pass gradients="autograd", "jax" or "torch"' in str(error.value)) == (k < 2)
    with pytest.raises(TypeError, match=r"^\w+: value_and_grad must be a function, got "):
        ways_to_evaluate()[k](found, [w])
    assert (w.value == 2).all()


@pytest.mark.parametrize("k", range(3))
def test_a_function_that_takes_the_variables(k: int) -> None:
    """As with `gradients=`, which is missing. Errors within a function are its own."""
    w = fv.Variable(G)
    with pytest.raises(TypeError, match=r"is called without arguments, but .*missing 1 .*'p'") as error:
        ways_to_evaluate()[k](lambda p: p[0].sum(), [w])
    assert ('pass gradients="autograd", "jax" or "torch"' in str(error.value)) == (k < 2)
    with pytest.raises(TypeError, match=r"^len\(\) takes"):
        ways_to_evaluate()[k](lambda: (len(), G), [w])  # type: ignore[call-arg]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("found", [None, G, "a", [1.0]], ids=["None", "array", "text", "list"])
def test_a_loss_that_is_no_number(k: int, found: Any) -> None:
    with pytest.raises(TypeError, match=r"^\w+: the loss must be a number, got "):
        ways_to_evaluate()[k](lambda: (found, [G]), [fv.Variable(G)])


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize(
    "gradient", [{"w": G}, G.sum, [None, G, G], "abc"], ids=["dict", "function", "None", "text"]
)
def test_a_gradient_of_another_type(k: int, gradient: Any) -> None:
    w = fv.Variable(np.full(3, 2.0), name="w")
    with pytest.raises(TypeError, match=r"^\w+: gradient of .*w.*: (must hold|cannot be read)"):
        ways_to_evaluate()[k](lambda: (1.0, gradient), w)
    assert (w.value == 2).all()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", [fv.optimizers.SGD, fv.optimizers.LBFGS])
@pytest.mark.parametrize("what", ["None", "pair", "array", "text"])
def test_a_loss_of_a_library_that_is_no_number(kind: Any, library: str, what: str) -> None:
    def wrong(p: Any) -> Any:
        return {"None": None, "pair": (p[0].sum(), [p[0]]), "array": p[0], "text": "a"}[what]

    w = fv.Variable(np.full(3, 2.0, np.float32))
    with pytest.raises(TypeError, match="the function must return only the loss, a number; got "):
        kind().minimize(wrong, [w], gradients=library)
    if library == "torch":
        with pytest.raises(TypeError, match="the loss must be a tensor, got 3"):
            kind().minimize(lambda p: 3.0, [w], gradients=library)
    assert (w.value == 2).all()


def test_nothing_is_imported_before() -> None:
    code = "import sys, fastvar.torch; print({'autograd', 'jax', 'torch', 'sklearn'} & {*sys.modules})"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )
