from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

RULES: dict[str, CompiledRule]

@final
class CompiledRule:
    @property
    def slots(self) -> int: ...
    @property
    def scalars(self) -> int: ...

@final
class Plan:
    rule: CompiledRule
    stages: npt.NDArray[Any]
    owner: str
    def __init__(
        self,
        owner: str,
        rule: CompiledRule,
        names: Sequence[str],
        weights: Iterable[npt.NDArray[Any]],
        slots: Iterable[Sequence[npt.NDArray[Any]]],
        groups: Iterable[int],
        averages: Iterable[npt.NDArray[Any] | None] | None = None,
    ) -> None: ...
    def bind(self, gradients: Iterable[Any], zero: bool = False) -> int: ...
    def sums_of_squares(self, each: bool, threads: int = 1) -> npt.NDArray[np.float64]: ...
    def run(self, scalars: Sequence[Sequence[float]], threads: int = 1) -> None: ...

def openmp() -> bool: ...
def max_threads() -> int: ...
