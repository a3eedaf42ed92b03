# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
export UDAS_FAST_CUDA ?= auto

BIN := .venv/bin
CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
SOURCES := setup.py pyproject.toml $(CPP)

.PHONY: help build demo test quick docs wheel lint format sanitize fuzz gpu-check clean

help:
	@echo "make demo    environment, build, train on procedural streets, table and figure"
	@echo "make test    environment, build, lint, all tests"
	@echo "make quick   the tests that take no seconds, for the daily loop"
	@echo "make docs    the documentation as a site in build/docs"
	@echo "make wheel   the packages of a release in dist, checked"
	@echo "make lint    ruff, mypy, import contracts and clang-format"
	@echo "make format  rewrite the sources as the formatters want them"
	@echo "make sanitize   the CPU operators' tests under AddressSanitizer and UBSan"
	@echo "make fuzz    40,000 operator calls and 3,600 files with random damage"
	@echo "make gpu-check  on a machine with a GPU: build, CUDA tests, compute-sanitizer, kernel times"
	@echo "make clean   remove build products and .venv"

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --group dev
	touch $@

# The build is made again when a source, the choice of CUDA or the environment has changed.
.venv/built-$(UDAS_FAST_CUDA): .venv/ready $(SOURCES)
	rm -f .venv/built-*
	$(BIN)/pip install --quiet --no-build-isolation --editable .
	touch $@

build: .venv/built-$(UDAS_FAST_CUDA)

demo: build
	$(BIN)/udas-fast demo

test: build lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

quick: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

.venv/docs: .venv/ready
	$(BIN)/pip install --quiet --group docs
	touch $@

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # a notice of the theme's makers

.venv/wheel: .venv/ready
	$(BIN)/pip install --quiet --group wheel
	touch $@

# In dist: the wheel of this platform, the one without compiled operators for every other, and the sources.
wheel: .venv/wheel
	rm -rf dist build/raw build/lib* build/bdist*
	$(BIN)/python -m build --no-isolation --wheel --outdir build/raw
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*.so' --wheel-dir dist build/raw/*.whl
	UDAS_FAST_EXTENSION=0 $(BIN)/python -m build --no-isolation --wheel --outdir dist
	$(BIN)/python -m build --no-isolation --sdist --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_wheel.py dist

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(if $(CPP),$(BIN)/clang-format --dry-run --Werror $(CPP))

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CPP),$(BIN)/clang-format -i $(CPP))

# Left out: what measures memory, needs gigabytes or starts a compiler, none of which a sanitizer can tell about.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: .venv/ready
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r pyproject.toml setup.py README.md LICENSE NOTICE csrc tests udas_fast build/sanitize/
	cd build/sanitize && UDAS_FAST_CUDA=0 CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" \
	  ../../$(BIN)/python setup.py --quiet build_ext --inplace
	cd build/sanitize && OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ../../$(BIN)/python -m pytest tests/ops \
	  -k "not full_resolution_map and not two_to_the_31 and not inductor and not emulation"

# Mutated inputs, many more of them than in the tests; numbered cases, so that each run has the same ones.
fuzz: build
	rm -rf build/fuzz && mkdir -p build/fuzz/operators build/fuzz/files
	OMP_NUM_THREADS=1 timeout 900 $(BIN)/python tests/mutations/run.py build/fuzz/operators 20000 operator "raw operator"
	OMP_NUM_THREADS=1 timeout 900 $(BIN)/python tests/mutations/run.py build/fuzz/files 300 \
	  recipe "run file" setting image label classes format folder manifest model weights checkpoint

gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

clean:
	rm -rf .venv build dist *.egg-info udas_fast/_ops.so
