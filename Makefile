# The front door. Everything runs inside .venv, which the first target makes; PYTHON picks the interpreter it is made from.
PYTHON ?= python3
# The CPU build of torch that this repository is tested against; any torch >= 2.9 works: make demo TORCH='torch>=2.9'
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: help demo test lint format type aot sanitize fuzz bench gpu-suite clean

help:  ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml setup.py $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)' 'setuptools>=77' wheel 'pybind11>=2.13'
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## Train on real digits, retrieve, translate, export, and write runs/demo/report.html
	$(BIN)/iiae demo --run-dir runs/demo

test: $(INSTALLED) lint type  ## Style, types and all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(INSTALLED)  ## ruff and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl' | xargs -r $(BIN)/clang-format --dry-run -Werror

format: $(INSTALLED)  ## Apply them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl' | xargs -r $(BIN)/clang-format -i

type: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

aot: $(INSTALLED)  ## Compile every Triton kernel for six GPU architectures, without a GPU; fails on a register spill
	$(BIN)/python -m iiae_fast.kernels.aot

sanitize: $(INSTALLED)  ## The retrieval tests on an engine built with AddressSanitizer and UndefinedBehaviorSanitizer
	IIAE_SANITIZE_ALL=1 IIAE_SEARCH_CASES=$(or $(CASES),300) $(BIN)/python -m pytest tests/retrieval/test_sanitized.py

fuzz: $(INSTALLED)  ## Fuzz the index loader and odd searches, SECONDS each (60)
	IIAE_FUZZ_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest tests/retrieval/test_fuzz.py

bench: $(INSTALLED)  ## Measure everything on this machine; the report goes to bench/results
	$(BIN)/iiae bench all $(if $(QUICK),--quick)

# On a bare GPU machine there is no .venv and no network: its own python has torch, Triton, pybind11 and pytest.
gpu-suite:  ## All that needs a GPU, in 9 minutes, into the folder OUT (DRY_RUN=1: its plumbing, on the CPU)
	$(or $(wildcard $(BIN)/python),python3) -m iiae_fast.bench.gpu_suite $(if $(BUDGET),--budget $(BUDGET)) \
		$(if $(RESUME),--resume $(RESUME)) $(if $(DRY_RUN),--dry-run)

clean:  ## Remove the environment and everything built
	rm -rf $(VENV) build *.egg-info iiae_fast/_C*.so
