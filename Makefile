# Every target makes a virtual environment in .venv and installs its requirements.
# PYTHON is the newest one on the path, from 3.11 on.
PYTHON ?= $(shell for name in $$(seq -f python3.%g 30 -1 11) python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
NO_PYTHON := Python 3.11 or newer is needed: apt-get install python3 python3-venv python3-dev, or make PYTHON=/path/to/it
VENV := .venv
PY := $(VENV)/bin/python
SOURCES := setup.py pyproject.toml $(wildcard $(addprefix fastvar/kernels/*,.pyx .pxi .h))
MATHJAX := docs/_build/mathjax/tex-svg.js
PYTEST := $(PY) -m pytest -n 2 --timeout 600

.PHONY: demo test integrations ranks bench bench-all docs lint format sanitize soak faults avx512 aarch64 package wheel versions clean

demo: $(VENV)/.examples
	$(PY) examples/digits.py
	$(PY) examples/fine_tune.py

test: $(VENV)/.test
	KERAS_BACKEND=numpy $(PYTEST)

# Before a release, and after changes to fastvar/torch: Lightning, Accelerate and transformers train with ours.
integrations: $(VENV)/.integrations
	KERAS_BACKEND=numpy $(PYTEST) tests/torch/integrations

# Steps, storage formats, checkpoints and whole jobs beside what is installed; then the report, in runs/bench.
bench: $(VENV)/.rivals
	$(PY) -m bench run
	$(PY) -m bench report

# Every combination, which takes days, and the tables of the docs. Where it was interrupted, it goes on.
bench-all: $(VENV)/.rivals
	$(PY) -m bench run --all
	$(PY) -m bench report
	$(PY) -m pytest bench -s
	$(PY) bench/overhead.py
	$(PY) bench/small.py
	$(PY) bench/torch_optim.py
	$(PY) bench/keras_optim.py

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/cython-lint fastvar/kernels
	$(PY) -m mypy.stubtest --mypy-config-file pyproject.toml fastvar.kernels.cpu fastvar.kernels.crew fastvar.kernels.turn fastvar.kernels.atomic fastvar.kernels.tensors fastvar.kernels.baseline

# Build docs/_build/html. It serves its own copy of MathJax.
docs: $(VENV)/.docs $(MATHJAX)
	KERAS_BACKEND=numpy $(PY) -m sphinx -q -W --keep-going -j 2 docs docs/_build/html

$(MATHJAX): | $(VENV)/.docs
	mkdir -p $(@D)
	cd $(@D) && $(abspath $(VENV))/bin/npm pack --silent mathjax@3.2.2 && \
	tar -xzmf mathjax-3.2.2.tgz --strip-components=2 package/es5/$(@F) && rm mathjax-3.2.2.tgz || \
	echo "npm cannot fetch MathJax: the site shows formulas as TeX"

format: $(VENV)/.lint
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Test the kernels under the address and undefined-behaviour sanitizers, in a separate build.
sanitize: $(VENV)/.test
	FASTVAR_SANITIZE=1 $(PY) setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 FASTVAR_SANITIZE=1 \
	$(PYTEST) -o pythonpath="build/sanitize/lib ." \
	tests/kernels/test_bits.py tests/kernels/test_formats.py tests/kernels/test_plan.py tests/kernels/test_bad_plan.py \
	tests/kernels/test_memory.py tests/kernels/test_stored.py tests/kernels/test_weights.py tests/torch/optim/test_gate.py \
	tests/optimizer/test_sparse.py tests/optimizer/test_bad_input.py

# Before a release, and after changes to fastvar/distributed: every optimizer and option on every number of ranks, a
# thousand ranks, and under mpirun 20 faults of each kind, and 200 kills of jobs that save. Takes twenty minutes.
ranks: $(VENV)/.test
	FASTVAR_RANKS=all FASTVAR_FAULTS=20 KERAS_BACKEND=numpy $(PYTEST) --timeout 7200 tests/distributed

# Before a release: the faults of tests/faults with 10,000 kills, interrupts and random programs, and
# the conversions of all floats. Takes hours.
soak: $(VENV)/.test
	FASTVAR_TENSORS=100000 $(PYTEST) tests/checkpoint/test_layout.py
	FASTVAR_KILLS=10000 $(PYTEST) -rP tests/faults # with the figures
	FASTVAR_INTERRUPTS=10000 KERAS_BACKEND=numpy $(PYTEST) --timeout 3600 \
	tests/optimizer/test_interrupts.py tests/optimizer/test_signals.py tests/checkpoint/test_interrupts.py
	FASTVAR_PROGRAMS=10000 KERAS_BACKEND=numpy $(PYTEST) tests/programs/test_programs.py
	FASTVAR_FLOATS=all $(PYTEST) --timeout 36000 tests/kernels/test_conversions.py \
	tests/kernels/test_weights.py # all 2^32 floats in each format

# Put other libraries to the same faults, and write docs/faults.md.
faults: $(VENV)/.test
	$(PY) -m tests.faults.rivals

# Test the AVX-512 kernels on an emulated processor (needs Debian and root; takes some minutes).
avx512: $(VENV)/.test
	tools/avx512/bits $(PY)

# Compare the bits of emulated ARM processors with those here (needs Debian on x86-64 and root; takes some minutes).
aarch64: $(VENV)/.test
	tools/aarch64/compare $(PY)

# Make dist/*.tar.gz and dist/*.whl, and look into them: neither may hold generated C.
package: $(VENV)/.test
	rm -rf dist
	$(PY) -m pip install --quiet build
	$(PY) -m build
	! $(PY) -m tarfile --list dist/*.tar.gz | grep '\.c$$' | grep -v bench/
	! $(PY) -m zipfile --list dist/*.whl | grep '\.c '

# Make dist/*.whl, which installs without a compiler, and test it in a new environment (tools/wheel.py says how).
PLATFORM := manylinux2014_$(shell uname -m)
wheel: $(VENV)/.wheel
	rm -rf build/wheel dist/*.whl
	LDFLAGS=-s $(PY) -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel repair --plat $(PLATFORM) --only-plat --wheel-dir dist build/wheel/*.whl
	$(PY) tools/wheel.py dist/*.whl

# Test with the oldest dependencies that are allowed, and with the newest on every Python that is here, or only
# COMBINATIONS, such as python3.13-newest.
versions: $(VENV)/.test
	$(PY) tools/versions.py $(COMBINATIONS)

# The install is editable: Python sources are used in place; kernels are rebuilt when they change.
$(VENV)/.%: $(SOURCES)
	test -x $(PY) || test -n "$(PYTHON)" || { echo "$(NO_PYTHON)" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	test $* != lint || touch $(VENV)/.test $(VENV)/.docs # lint installs all of them, too
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build docs/generated *.egg-info fastvar/kernels/*.c fastvar/kernels/*.so runs
