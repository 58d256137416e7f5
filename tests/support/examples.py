"""The modules of the examples."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

from tests.support.pages import ROOT


@functools.cache
def mlp() -> Any:
    """Import `examples/mlp.py`."""
    spec = importlib.util.spec_from_file_location("mlp", ROOT / "examples" / "mlp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
