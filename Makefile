# Everything a checkout needs: `make demo` and `make test` work on a machine with python3 (3.11 or newer) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env demo demo-rs3 test soak lint format bench constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP)  ## make .venv with everything in it; quick when it is up to date

$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv

$(STAMP): pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

demo-rs3: env  ## caption labelled scenes offline and check every planted fact
	$(BIN)/python -m demo.rs3

demo: env  ## run the main job on an offline world and check every planted answer
	$(BIN)/python -m demo

test: env  ## the test suite
	$(BIN)/python -m pytest

soak: env  ## the long tests: kill matrix, large files, long-tail web
	$(BIN)/python -m pytest -m soak --timeout 3600

lint: env  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env  ## put the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env  ## benchmarks beside the peers
	$(BIN)/python -m benchmarks.keywords
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.dedup near

constraints: $(BIN)/uv  ## resolve pyproject.toml anew; add UPGRADE=1 to take the newest versions
	$(BIN)/uv pip compile --quiet --python $(BIN)/python pyproject.toml --extra dev --no-annotate --no-header \
		--no-emit-index-url $(if $(UPGRADE),--upgrade) -o constraints.txt

clean:  ## remove the environment, caches and the demo's output
	rm -rf $(VENV) build dist *.egg-info demo-run demo-rs3 .pytest_cache .mypy_cache .ruff_cache .hypothesis
