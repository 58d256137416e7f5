"""What an import loads, and which instruction set it chooses."""

from __future__ import annotations

import sys

import pytest

from fastvar import kernels
from tests.support.processes import output, run

STEP = """
import numpy as np, fastvar as fv
from fastvar import kernels, threads
w = fv.Variable(np.linspace(-1, 1, 70_001), dtype="f4")
optimizer = fv.optimizers.AdamW(0.1, global_clipnorm=1.0, use_ema=True)
for _ in range(3):
    optimizer.apply([np.cos(np.arange(70_001.0))], [w])
print(kernels.isa, hash(w.numpy().tobytes()))
"""


def test_every_instruction_set_can_be_forced_and_gives_the_same_bits() -> None:
    results = {}
    for isa in ("reference", *kernels.supported()):
        name, results[isa] = output(STEP, FASTVAR_ISA=isa, PYTHONHASHSEED="0").split()
        assert name == isa
    assert len(set(results.values())) == 1
    assert output(STEP, FASTVAR_ISA="").split()[0] == kernels.supported()[-1]


@pytest.mark.parametrize("isa", ["AVX2", "sse9", "avx2 ", "cpu", "../avx2"])
def test_unknown_instruction_set_is_an_import_error(isa: str) -> None:
    done = run("import fastvar", FASTVAR_ISA=isa)
    assert done.returncode == 1
    assert (
        f"ImportError: fastvar: FASTVAR_ISA must be one of baseline, avx2, avx512, reference, got {isa!r}"
        in done.stderr
    )


def test_unsupported_instruction_set_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "supported", lambda: ["baseline"])
    with pytest.raises(ImportError, match="this processor does not run FASTVAR_ISA='avx2'; it runs baseline"):
        kernels.load("avx2")
    missing = (
        [isa for isa in kernels.ISAS if isa not in kernels.cpu.supported()] if hasattr(kernels, "cpu") else []
    )
    for isa in missing:
        done = run("import fastvar", FASTVAR_ISA=isa)
        assert done.returncode == 1
        assert f"ImportError: fastvar: this processor does not run FASTVAR_ISA={isa!r}" in done.stderr


def test_missing_kernels_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastvar.kernels.baseline", None)
    with pytest.raises(ImportError, match=r"compiled kernels are missing.*pip install"):
        kernels.load("baseline")


@pytest.mark.parametrize("act", ["", "; fastvar.optimizers.Adam(0.1).apply([[1.0]], [fastvar.Variable([1.0])])"])
def test_import_brings_in_nothing_but_numpy(act: str) -> None:
    code = f"import sys, fastvar{act}; print(sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = set(eval(output(code)))
    assert not loaded & {
        "h5py",
        "scipy",
        "torch",
        "keras",
        "ml_dtypes",
        "xxhash",
        "sklearn",
        "matplotlib",
        "tqdm",
    }
    assert "fastvar" in loaded


@pytest.mark.parametrize("name", ["checkpoint.verify", "torch.Adam", "Checkpoint"])
def test_parts_are_imported_when_they_are_first_used(name: str) -> None:
    assert output(f"import fastvar as fv; print(fv.{name}.__name__)").strip() == name.rpartition(".")[2]
