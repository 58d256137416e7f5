from typing import Any

__pyx_capi__: dict[str, Any]

def helpers_hired() -> int: ...
