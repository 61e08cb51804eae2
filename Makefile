# Everything runs in .venv at the repository root. `make demo` and `make test` need Python 3.11 and nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test test-oldest test-compiled matrix properties lint types format bench-engine bench-speed clean
.DEFAULT_GOAL := help

help:            ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1 	/p' $(MAKEFILE_LIST) | expand -t 16

demo: .venv/installed   ## Ask the embedded model about the bundled picture, dense and pruned; draws out/demo.png
	@mkdir -p out
	$(BIN)/foveate ask demo "what colour is the circle?" --overlay out/demo.png

test: .venv/installed-dev   ## Run the tests
	$(BIN)/python -m pytest

test-oldest: .venv/installed-oldest   ## Run the matrix and the published numbers on the oldest transformers supported
	PYTHONPATH=.venv/oldest $(BIN)/python -m pytest tests/test_matrix.py tests/test_golden.py

test-compiled: .venv/installed-dev   ## Run the matrix on compiled models of the families that `make test` leaves out
	ROWS=compiled $(BIN)/python -m pytest tests/test_matrix.py -k every_cell

matrix: .venv/installed-dev   ## Run every family x method x mode and write docs/matrix.md (half an hour)
	$(BIN)/python tests/matrix.py

properties: .venv/installed-dev   ## Try 5,000 random prompts, schedules and kept sets (13 minutes)
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest tests/test_properties.py --hypothesis-show-statistics

lint: .venv/installed-dev   ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-dev   ## Mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/installed-dev   ## Check the types
	$(BIN)/pyright

bench-engine: .venv/installed   ## How close the engine comes to the ideal saving of time
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_engine.py

bench-speed: .venv/installed   ## Prefill, decode and memory of every method beside the ideal (a quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_speed.py --page docs/speed.md

clean:           ## Remove the environment and everything made
	rm -rf .venv out build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info

# Stamps: a second `make test` installs nothing unless the packaging has changed.
.venv/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || { $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "These recipes need Python 3.11 or newer (set PYTHON=...)")' && $(PYTHON) -m venv .venv; }
	@echo "installing into .venv, some minutes ..."
	$(PIP) install -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# The same environment with another transformers before it.
.venv/installed-oldest: .venv/installed-dev
	$(PIP) install --no-deps --upgrade --target .venv/oldest 'transformers==5.20.0'
	@touch $@
