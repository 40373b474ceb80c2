# `make` says what there is. Everything is installed into .venv and .tools, beside this file;
# only chromium, strace and faketime, for a few tests, are system packages (and only root gets them).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

# What the goals below pass on: make demo ARGS="--help", make test ARGS="tests/shim -x"
ARGS ?=

.PHONY: help
help:  ## say what there is
	@echo 'usage: make GOAL [ARGS="…"]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(INSTALLED)  ## train on real images and watch the loaders; nothing else needed
	@exec $(BIN)/dlmon demo $(ARGS)

.PHONY: stack
stack: $(INSTALLED) tools  ## the demo with a real Prometheus and Alertmanager beside it
	@exec $(BIN)/python -m tools.stack $(ARGS)

.PHONY: test
test: $(INSTALLED) tools  ## run the tests (not those marked slow)
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: lint
lint: $(INSTALLED)  ## formatting, linter, strict types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@# no cache: it does not notice a module that appears where an import was already looked for
	@$(BIN)/lint-imports --no-logo --no-cache

.PHONY: gen-check
gen-check: $(INSTALLED)  # the generated files are those that the code generates
	@$(BIN)/dlmon gen --check

.PHONY: check
check: lint gen-check test  ## lint, generated files up to date, tests: before every commit

.PHONY: slow
slow: $(INSTALLED) tools  ## run the tests marked slow
	@$(BIN)/python -m pytest -m slow $(ARGS)

.PHONY: soak
soak: $(INSTALLED) tools  ## half an hour of healthy and hung jobs: no false alarm, no hang missed
	@$(BIN)/python -m tests.soak $(ARGS)

.PHONY: image-test
image-test:  ## build the container image without an engine (root, Debian) and try it
	@tools/test_image

# The frameworks pull gigabytes and pins of their own: they get an environment beside .venv.
ECOSYSTEM := .venv-ecosystem
ECOSYSTEM_INSTALLED := $(ECOSYSTEM)/.installed

.PHONY: ecosystem
ecosystem: $(ECOSYSTEM_INSTALLED)  ## run real frameworks with dlmon: Lightning, Accelerate, ...
	@$(ECOSYSTEM)/bin/python -m pytest -m ecosystem tests/ecosystem $(ARGS)

$(ECOSYSTEM_INSTALLED): pyproject.toml tools/install_ecosystem $(wildcard tests/ecosystem/*.txt)
	@echo "make: installing torch and the frameworks into $(ECOSYSTEM) (some minutes)"
	@PYTHON=$(PYTHON) tools/install_ecosystem $(ECOSYSTEM)
	@touch $@

.PHONY: full
full: check slow ecosystem  ## all of the above: before a release

BENCH_INSTALLED := $(VENV)/.bench

.PHONY: bench
bench: $(BENCH_INSTALLED)  ## measure what shim and agent cost: some 20 minutes, the machine left alone
	@$(BIN)/python -m bench $(ARGS)
	@$(if $(ARGS),,$(BIN)/python -m bench.agent)

# What dlmon is compared with is no reason to fail: the benchmark says what is not installed.
$(BENCH_INSTALLED): $(INSTALLED)
	@$(PIP) install --editable '.[bench]' || echo "make: no traceml-ai; its row will say so"
	@touch $@

.PHONY: gen
gen: $(INSTALLED)  ## regenerate dashboards, rules and documents from the code
	@$(BIN)/dlmon gen $(ARGS)

.PHONY: format
format: $(INSTALLED)  ## format and fix what can be fixed
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

.PHONY: clean
clean:  ## remove what was built, installed and cached here
	@rm -rf $(VENV) $(ECOSYSTEM) .tools build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	    .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch belongs to the job: it is installed here only if this environment has none.
$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || { \
	    echo "make: creating $(VENV)"; \
	    $(PYTHON) -m venv $(VENV); \
	}
	@$(BIN)/python -c 'import importlib.util as u; raise SystemExit(not u.find_spec("torch"))' || { \
	    echo "make: installing $(TORCH) into $(VENV): the demo and the tests train with it (minutes)"; \
	    $(PIP) install '$(TORCH)'; \
	}
	@echo "make: installing dlmon and what develops it into $(VENV)"
	@$(PIP) install --editable '.[dev,demo]'
	@touch $@

# Servers and a browser that the tests run for real. Fast when all is there; never fails.
.PHONY: tools
tools:
	@tools/install_tools
