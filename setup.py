"""Build the compiled kernels. Everything declarative is in pyproject.toml.

Switches (environment): FASTVAR_DEBUG=1 (no optimisation, bounds checks and assertions on),
FASTVAR_SANITIZE=1 (address and undefined-behaviour sanitizers), FASTVAR_COVERAGE=1 (line tracing),
FASTVAR_OPENMP=0 (serial build).
"""

import os
import platform
import tempfile
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG, SANITIZE, COVERAGE = (
    os.environ.get(f"FASTVAR_{name}") == "1" for name in ("DEBUG", "SANITIZE", "COVERAGE")
)
# Without these, compilers do not vectorise sqrt, or they fuse a*b+c and change the bits (docs/design.md).
EXACT = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wextra"]
# By default, GCC vectorises no loop with more than 10 pairs of arrays that might overlap (adan has four slots).
EXACT += ["--param=vect-max-version-for-alias-checks=32"]
# With jump threading, GCC turns selects that share a condition into branches, and vectorises these badly (rprop).
EXACT += ["-fno-thread-jumps"]
AVX512 = [f"-mavx512{part}" for part in ("f", "vl", "dq", "bw")] + ["-mprefer-vector-width=512"]
FLAGS = {  # compiler type -> (all modules, openmp, per instruction set)
    "unix": (["-O3", *EXACT], ["-fopenmp"], {"avx2": ["-mavx2"], "avx512": AVX512}),
    "msvc": (["/O2", "/fp:precise"], ["/openmp"], {"avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}),
}
MODULES = ["cpu", "turn", "atomic", "tensors", "baseline"] + ["avx2", "avx512"] * (
    platform.machine() in ("x86_64", "AMD64")
)


class BuildKernels(build_ext):
    def build_extensions(self):
        common, openmp, isa = FLAGS.get(self.compiler.compiler_type, FLAGS["unix"])
        openmp = openmp if self.compiles_with(openmp) else []
        common = common + ["-O0", "-g", "-UNDEBUG"] * DEBUG
        common = common + ["-g", "-fsanitize=address,undefined"] * SANITIZE
        for extension in self.extensions:
            extension.extra_compile_args = common + openmp + isa.get(extension.name.split(".")[-1], [])
            extension.extra_link_args = openmp + ["-fsanitize=address,undefined"] * SANITIZE
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()

    def compiles_with(self, flags):
        if os.environ.get("FASTVAR_OPENMP") == "0":
            return False
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=flags)
                self.compiler.link_executable(objects, str(Path(folder, "probe")), extra_postargs=flags)
            except Exception:  # each compiler class raises its own; `python -m fastvar info` shows the result
                return False
        return True


directives = {
    "boundscheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "linetrace": COVERAGE,
    "auto_pickle": False,
    "autotestdict": False,
}
macros = [("NPY_NO_DEPRECATED_API", "NPY_1_22_API_VERSION")] + [("CYTHON_TRACE_NOGIL", "1")] * COVERAGE
extensions = [
    Extension(f"fastvar.kernels.{name}", [f"fastvar/kernels/{name}.pyx"], [np.get_include()], macros)
    for name in MODULES
]
setup(ext_modules=cythonize(extensions, compiler_directives=directives), cmdclass={"build_ext": BuildKernels})
