from typing import Any

__pyx_capi__: dict[str, Any]

most_threads: int
parallel: int

def helpers_hired() -> int: ...
