# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
export UDAS_FAST_CUDA ?= auto

BIN := .venv/bin
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)
CPP := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

.PHONY: help build demo test lint format clean

help:
	@echo "make demo    environment, build, train on procedural streets, table and figure"
	@echo "make test    environment, build, lint, all tests"
	@echo "make lint    ruff and clang-format"
	@echo "make format  rewrite the sources as the formatters want them"
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CPP),$(BIN)/clang-format --dry-run --Werror $(CPP))

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CPP),$(BIN)/clang-format -i $(CPP))

clean:
	rm -rf .venv build *.egg-info udas_fast/_C*.so
