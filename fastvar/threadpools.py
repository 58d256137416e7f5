"""Let threadpoolctl see and limit our threads, without importing it: it is told when somebody imports it."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

Get = Callable[[], int]
Limit = Callable[[int], None]


def offer(get: Get, limit: Limit) -> None:
    """Let threadpoolctl call `get` for the number of threads, and `limit` to set it."""
    if "threadpoolctl" in sys.modules:
        _register(sys.modules["threadpoolctl"], get, limit)
    else:
        sys.meta_path.insert(0, _Finder(get, limit))


def _register(threadpoolctl: Any, get: Get, limit: Limit) -> None:
    class Controller(threadpoolctl.LibController):  # type: ignore[misc]
        """Our threads, which it finds by the file name of the compiled module."""

        user_api = internal_api = "fastvar"
        filename_prefixes = ("crew",)
        check_symbols = ("PyInit_crew",)

        def get_version(self) -> None:
            """Return None: the file does not say."""

        def get_num_threads(self) -> int:
            """Return how many threads a step may use."""
            return get()

        def set_num_threads(self, num_threads: int) -> None:
            """Limit the threads of a step."""
            limit(num_threads)

    threadpoolctl.register(Controller)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds threadpoolctl like the others, and registers our threads when it has been imported."""

    def __init__(self, get: Get, limit: Limit) -> None:
        self._get, self._limit = get, limit

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "threadpoolctl":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                _register(module, self._get, self._limit)

            loader.exec_module = execute_and_register
        return spec
