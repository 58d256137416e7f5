from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

from fastvar.formats import Codes
from fastvar.kernels.units import Units
from fastvar.slices import Rows

RULES: dict[str, CompiledRule]

@final
class CompiledRule:
    @property
    def slots(self) -> tuple[str, ...]: ...
    @property
    def scalars(self) -> tuple[str, ...]: ...

@final
class Plan:
    @property
    def stages(self) -> npt.NDArray[Any]: ...
    @property
    def seeds(self) -> npt.NDArray[Any]: ...
    @property
    def rounds(self) -> bool: ...
    @property
    def owner(self) -> str: ...
    @property
    def units(self) -> tuple[Units, ...]: ...
    def __new__(
        cls,
        owner: str,
        rule: CompiledRule | Sequence[CompiledRule],
        names: Sequence[str],
        weights: Iterable[npt.NDArray[Any]],
        slots: Iterable[Sequence[npt.NDArray[Any] | Codes]],
        groups: Iterable[int],
        averages: Iterable[npt.NDArray[Any] | None] | None = None,
        directions: Iterable[npt.NDArray[Any] | None] | None = None,
        rows: bool = True,
        sums: Sequence[Sequence[tuple[str | int, ...]]] | None = None,
        direct: Sequence[bool] | None = None,
        matrices: Sequence[tuple[Sequence[tuple[int, int] | None], bool]] = (),
    ) -> Self: ...
    def share_scalars(self, cohort_of: Iterable[int]) -> None: ...
    def bind(self, gradients: Iterable[Any], zero: bool = False) -> int: ...
    def sums_of_squares(self, each: bool, threads: int = 1, scale: float = 1.0) -> npt.NDArray[np.float64]: ...
    def squares_of_blocks(self, threads: int = 1, scale: float = 1.0) -> npt.NDArray[np.float64]: ...
    def sums(
        self, scalars: Sequence[Sequence[float]], threads: int = 1, scale: float = 1.0
    ) -> npt.NDArray[np.float64]: ...
    def unit_sums(
        self, k: int, weights: bool = False, threads: int = 1, scale: float = 1.0
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
    def run(
        self,
        scalars: Sequence[Sequence[float]],
        threads: int = 1,
        count: list[int] | None = None,
        commits: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] | None = None,
        guard: bool = False,
        agree: Callable[[list[tuple[int, bool]]], list[tuple[int, bool]]] | None = None,
    ) -> list[tuple[int, bool]]: ...

def merge(gradient: Rows, wide: bool) -> Rows: ...
def copy(
    targets: Iterable[npt.NDArray[Any]], sources: Iterable[npt.NDArray[Any] | bytes], threads: int = 1
) -> None: ...
