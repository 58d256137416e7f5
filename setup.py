"""Build the compiled kernels. Everything declarative is in pyproject.toml.

Switches (environment): FASTVAR_DEBUG=1 (no optimisation, bounds checks and assertions on),
FASTVAR_SANITIZE=1 (address and undefined-behaviour sanitizers), FASTVAR_SANITIZE=thread (the thread sanitizer),
FASTVAR_COVERAGE=1 (line tracing). With other switches than before, everything is built anew.
"""

import hashlib
import os
import shutil
import sysconfig
from pathlib import Path

import Cython
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
# The machine that is built for: another than the builder's when cross-compiling. A macOS wheel for two
# machines (universal2) has the baseline only.
TARGET = sysconfig.get_platform().rpartition("-")[2].removeprefix("linux_")
MODULES = ["cpu", "turn", "atomic", "crew", "tensors", "baseline"] + ["avx2", "avx512"] * (
    TARGET in ("x86_64", "amd64")
)


directives = {
    "boundscheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "linetrace": COVERAGE,
    "auto_pickle": False,
    "autotestdict": False,
}
# C files have a folder for each set of directives. (Coverage tools look for them beside the sources.)
C_FILES = None if COVERAGE else f"build/cython-{Cython.__version__}{'-debug' * DEBUG}"
NO_COMPILER = """a C compiler is needed, and {!r} was not found. Install one:
  Debian, Ubuntu: apt-get install gcc    Fedora: dnf install gcc    macOS: xcode-select --install
or name yours, as in CC=clang"""
NO_HEADERS = """Python.h was not found in {}. Install the headers of Python:
  Debian, Ubuntu: apt-get install python3-dev    Fedora: dnf install python3-devel"""


def check_compiler(command):
    """Exit with what to install if there is no compiler or no Python.h."""
    if shutil.which(command) is None:
        raise SystemExit(f"fastvar: {NO_COMPILER.format(command)}")
    folder = sysconfig.get_paths()["include"]
    if not Path(folder, "Python.h").exists():
        raise SystemExit(f"fastvar: {NO_HEADERS.format(folder)}")


class BuildKernels(build_ext):
    def run(self):
        made = cythonize(self.extensions, compiler_directives=directives, build_dir=C_FILES, force=COVERAGE)
        for extension, c in zip(self.extensions, made, strict=True):
            extension.sources = c.sources
        super().run()

    def build_extensions(self):
        if self.compiler.compiler_type == "unix":
            check_compiler(self.compiler.compiler_so[0])
        common, isa = FLAGS.get(self.compiler.compiler_type, FLAGS["unix"])
        sanitizers = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
        common = common + ["-O0", "-g", "-UNDEBUG"] * DEBUG + ["-g", *sanitizers] * bool(sanitizers)
        for extension in self.extensions:
            extension.extra_compile_args = common + isa.get(extension.name.split(".")[-1], [])
            extension.extra_link_args = sanitizers
        self.parallel = self.parallel or os.cpu_count()
        self.build_with_stamp(f"{C_FILES} {macros} {common} {self.compiler.compiler_so} {np.__version__}")

    def build_with_stamp(self, switches):
        """Build what is older than its sources; build everything if the last build here had other switches."""
        place = os.path.abspath(self.get_ext_fullpath(self.extensions[0].name))
        stamp = Path(self.build_temp, f"switches-{hashlib.sha256(place.encode()).hexdigest()[:16]}")
        self.force = self.compiler.force = not stamp.exists() or stamp.read_text() != switches
        stamp.unlink(missing_ok=True)
        super().build_extensions()
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(switches)


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
setup(ext_modules=extensions, cmdclass={"build_ext": BuildKernels})
