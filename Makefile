# make demo      ten labels to a classifier on BBC news: installs, then runs `pet run` (minutes on two cores, no hub, no GPU)
# make quick     the tests that take no time, for while you work
# make test      everything CI checks: lint, format, types, layers, tests
# make test-all  the same, and the tests of a Ray cluster that take minutes
# make check     lint, format, types, layers
# make cover     the tests, and which lines they do not reach (two minutes more)
# make docs      the pages that are generated from the program, and the site: build/site/index.html
# Each works alone on a fresh clone with nothing but Python 3.11 or newer.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo quick test test-all cover check docs clean

PYTEST := $(BIN)/python -m pytest -q -n logical --dist loadfile --no-loadscope-reorder

demo: .venv/installed
	$(BIN)/pet run

quick: .venv/installed
	$(PYTEST) -m "not slow and not ray"

test: check
	$(PYTEST) -m "not ray"

test-all: check
	$(PYTEST)

cover: .venv/installed
	$(PYTEST) -m "not ray" --cov --cov-report=term:skip-covered --cov-fail-under=90

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[demo,dev]'
	touch $@

docs: .venv/docs-installed
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs build/site

.venv/docs-installed: .venv/installed
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv build .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .coverage dist
