# The two commands of this project are `make demo` and `make test`. Both set themselves up on a machine that
# has only make and Python 3.11 or newer; everything they install stays in .venv-demo and .venv.

SHELL := /bin/sh
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.SUFFIXES:

# The interpreter to build from. Unset: the first of python3.13, 3.12, 3.11, python3 that really runs.
PYTHON ?=
# Options for the command of a target: make test ARGS="-k retry", make demo ARGS=--help
ARGS ?=
# Processes that run tests side by side. One file stays in one process, so that its servers are started once.
JOBS ?= 2
UV ?= uv

VENV := .venv
DEMO_VENV := .venv-demo
PYTEST_OPTIONS := -n $(JOBS) --dist loadfile $(ARGS)

# $(call set_up,DIR,LOCK): does nothing, quickly, when DIR already holds what LOCK says.
set_up = python=$$(PYTHON="$(PYTHON)" .ci/find-python $(1)) && "$$python" -I .ci/set_up.py $(1) $(2)

.PHONY: help demo test test-all lint types format lock setup clean distclean

help:  ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo:  ## start real servers, kill the primary under load, show that nothing was lost
	@$(call set_up,$(DEMO_VENV),requirements.lock)
	@$(DEMO_VENV)/bin/aiecs-resilient demo $(ARGS)

test: setup  ## everything: lint, two strict type checkers, all tests against real servers
	@$(VENV)/bin/python .ci/checks.py lint types tests -- $(PYTEST_OPTIONS)

test-all:  ## the tests on each of Python 3.11, 3.12 and 3.13 that is found here
	@.ci/test-all $(PYTEST_OPTIONS)

lint: setup  ## ruff: rules and format
	@$(VENV)/bin/python .ci/checks.py lint

types: setup  ## mypy and basedpyright, both strict
	@$(VENV)/bin/python .ci/checks.py types

format: setup  ## let ruff repair and format what it can
	@$(VENV)/bin/python -m ruff check --fix .
	@$(VENV)/bin/python -m ruff format .

setup:  ## only make the environment for development, .venv
	@$(call set_up,$(VENV),requirements-dev.lock)

# Locks name versions and hashes only, never the place packages come from: that is the machine's own setting.
# make lock ARGS=--upgrade takes the newest versions; without it, what is locked stays unless it must change.
LOCK := pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	--python-version 3.11 pyproject.toml --extra demo $(ARGS)
lock:  ## write both lock files anew from pyproject.toml (needs uv)
	@$(UV) --version >/dev/null 2>&1 || { echo "make lock needs uv: install it, or name it (UV=/path/to/uv)" >&2; exit 1; }
	$(UV) $(LOCK) --group build -o requirements.lock
	$(UV) $(LOCK) --group dev -c requirements.lock -o requirements-dev.lock

clean:  ## remove what was built and cached, keep the environments
	rm -rf build dist .make .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-report.html demo-report.evidence
	find . -path './.venv*' -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove the environments too
	rm -rf .venv .venv-demo .venv-3.11 .venv-3.12 .venv-3.13
