# `make` lists the targets. Everything is installed into .venv; nothing else on the machine changes.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# The first of these that runs and is new enough; override with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test lint format test-slow bench docs clean distclean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
		awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

install: $(VENV)/.core ## the library and its command line, in .venv

install-dev: $(VENV)/.dev ## the same with everything that tests and checks need

demo: $(VENV)/.core ## train a generator on the embedded data and use it, in runs/demo
	$(BIN)/ltdi demo --out runs/demo

test: lint ## every check and every test that is not slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

lint: $(VENV)/.dev ## formatting, style, types and spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/.dev ## rewrite files in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-slow: $(VENV)/.dev ## the slow tests only
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

bench: $(VENV)/.core ## run the benchmarks (BENCH_ARGS goes to benchmarks/run.py)
	$(BIN)/python benchmarks/run.py $(BENCH_ARGS)

docs: $(VENV)/.docs ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove caches and build outputs; .venv and runs/ stay
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find ltdi tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; pass make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is older than what it was installed from only when that has changed.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/.core
	$(PIP) -e ".[docs]"
	@touch $@
