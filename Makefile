# Two commands do everything: `make demo` shows what the library is for, `make test` proves that it works.
# Each makes its own .venv. A machine needs Python 3.11 or newer, make and a package index; nothing else.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq
TYPING := $(wildcard tests/typing)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# --- what people type ---------------------------------------------------------------------------------

.PHONY: help
help:
	@awk -F ':.*## ' '/^[.a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(VENV)/.runtime  ## Kill a run in the middle and let another process finish it
	@$(BIN)/python -m examples.demo

.PHONY: test
test: $(VENV)/.dev  ## Run the tests (all but those marked torture)
	$(PYTEST)

.PHONY: check lint imports types
check: lint imports types  ## Run the linter, the layers contract and the type checkers
lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
imports: $(VENV)/.dev
	$(BIN)/lint-imports
types: $(VENV)/.dev
	$(BIN)/mypy src $(TYPING)
	$(if $(TYPING),$(BIN)/basedpyright)

.PHONY: torture
torture: $(VENV)/.dev  ## Run the tests that take minutes: kills, power cuts, races, long fuzzing
	HYPOTHESIS_PROFILE=torture $(PYTEST) -m torture

.PHONY: bench
bench: $(VENV)/.dev  ## Measure the budgets of docs/benchmarks.md
	@$(BIN)/python -m benchmarks

.PHONY: format
format: $(VENV)/.dev  ## Format the source and mend what the linter can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: test-all
test-all:  ## Run the tests on every supported Python that this machine has
	@found=0; for version in 3.11 3.12 3.13; do \
	    python=; \
	    for candidate in python$$version $$HOME/.pyenv/versions/$$version.*/bin/python$$version; do \
	        if "$$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then python=$$candidate; fi; \
	    done; \
	    if [ -z "$$python" ]; then echo "== Python $$version: not on this machine"; continue; fi; \
	    echo "== Python $$version: $$python"; \
	    $(MAKE) --no-print-directory test PYTHON="$$python" VENV=.venv-$$version || exit 1; \
	    found=1; \
	done; [ $$found = 1 ]

.PHONY: clean
clean:  ## Remove everything that make and the tools made
	rm -rf .venv .venv-* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# --- the virtual environment --------------------------------------------------------------------------
# Two stamps, so that the demo waits for the run-time dependencies only. The second stands on the first:
# under `make -j` they are never installed at once.

$(VENV)/.runtime: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("flujo needs Python 3.11 or newer, \
	this is %d.%d. Say which one to use: make PYTHON=python3.12" % sys.version_info[:2])'
	@# One whose making was interrupted, or whose interpreter is gone, is made anew.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	    { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing flujo and its dependencies into $(VENV)"
	@$(PIP) install 'pip>=25.1'  # the first that knows dependency groups
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the development tools into $(VENV)"
	@$(PIP) install --group dev
	@touch $@

.PHONY: .venv
.venv: $(VENV)/.dev  ## Make the environment for development
