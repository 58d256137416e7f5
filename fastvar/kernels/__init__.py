"""The compiled kernels, for the best instruction set that this processor runs.

`FASTVAR_ISA=baseline|avx2|avx512|reference` forces one; `reference` is the NumPy twin.
"""

import importlib
import os
from types import ModuleType

from fastvar.kernels import reference

ISAS = ("baseline", "avx2", "avx512")


def supported() -> list[str]:
    """Return the names of the instruction sets that this processor runs, the best one last."""
    from fastvar.kernels.cpu import supported as runs

    return runs()


def load(isa: str | None = None) -> tuple[str, ModuleType]:
    """Return the name and module of an instruction set, by default the best supported one.

    Raises
    ------
    ImportError
        If it is unknown, not supported by this processor, or was not built.
    """
    if isa == "reference":
        return isa, reference
    try:
        available = supported()
        if isa is None:
            isa = available[-1]
        if isa not in ISAS:
            raise ImportError(f"fastvar: FASTVAR_ISA must be one of {', '.join(ISAS)}, reference, got {isa!r}")
        if isa not in available:
            raise ImportError(
                f"fastvar: this processor does not run FASTVAR_ISA={isa!r}; it runs {', '.join(available)}"
            )
        return isa, importlib.import_module(f"fastvar.kernels.{isa}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"fastvar: the compiled kernels are missing ({error.name}); build them with `pip install .`"
        ) from error


isa: str
active: ModuleType
isa, active = load(os.environ.get("FASTVAR_ISA") or None)
RULES = active.RULES
Plan = active.Plan
copy = active.copy
merge = active.merge
