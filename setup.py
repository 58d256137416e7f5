"""Build the compiled kernels. Everything declarative is in pyproject.toml.

Switches (environment): FASTVAR_DEBUG=1 (no optimisation, bounds checks and assertions on),
FASTVAR_SANITIZE=1 (address and undefined-behaviour sanitizers), FASTVAR_SANITIZE=thread (the thread sanitizer),
FASTVAR_COVERAGE=1 (line tracing).
"""

import os
import platform

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG, COVERAGE = (os.environ.get(f"FASTVAR_{name}") == "1" for name in ("DEBUG", "COVERAGE"))
SANITIZERS = {"1": "address,undefined", "thread": "thread"}
SANITIZE = SANITIZERS.get(os.environ.get("FASTVAR_SANITIZE", ""))
# Without these, compilers do not vectorise sqrt, or they fuse a*b+c and change the bits (docs/design.md).
EXACT = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wall", "-Wextra"]
# By default, GCC vectorises no loop with more than 10 pairs of arrays that might overlap (adan has four slots).
EXACT += ["--param=vect-max-version-for-alias-checks=32"]
# With jump threading, GCC turns selects that share a condition into branches, and vectorises these badly (rprop).
EXACT += ["-fno-thread-jumps"]
AVX512 = [f"-mavx512{part}" for part in ("f", "vl", "dq", "bw")] + ["-mprefer-vector-width=512"]
FLAGS = {  # compiler type -> (all modules, per instruction set)
    "unix": (["-O3", *EXACT], {"avx2": ["-mavx2"], "avx512": AVX512}),
    "msvc": (["/O2", "/fp:precise"], {"avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]}),
}
MODULES = ["cpu", "turn", "atomic", "crew", "tensors", "baseline"] + ["avx2", "avx512"] * (
    platform.machine() in ("x86_64", "AMD64")
)


class BuildKernels(build_ext):
    def build_extensions(self):
        common, isa = FLAGS.get(self.compiler.compiler_type, FLAGS["unix"])
        sanitizers = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
        common = common + ["-O0", "-g", "-UNDEBUG"] * DEBUG + ["-g", *sanitizers] * bool(sanitizers)
        for extension in self.extensions:
            extension.extra_compile_args = common + isa.get(extension.name.split(".")[-1], [])
            extension.extra_link_args = sanitizers
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()


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
    Extension(
        f"fastvar.kernels.{name}",
        [f"fastvar/kernels/{name}.pyx"],
        [np.get_include(), "fastvar/kernels"],
        macros,
        depends=["fastvar/kernels/crew.h", "fastvar/kernels/prefetch.h"],
    )
    for name in MODULES
]
setup(ext_modules=cythonize(extensions, compiler_directives=directives), cmdclass={"build_ext": BuildKernels})
