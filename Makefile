# Needs Python 3.11 or newer, pip and make; everything else goes into $(VENV).

PYTHON ?= python3
VENV ?= .venv
# auto: the CPU build of torch wherever it can be had. default: what plain pip takes (CUDA on Linux x86_64).
TORCH ?= auto
# Seeds the sample of `make test` and hypothesis: a run of one commit can be repeated anywhere.
SEED ?= $(shell git rev-parse --verify --quiet HEAD || echo no-commit)

BIN := $(VENV)/bin
DEMO_INSTALLED := $(VENV)/.installed-demo
INSTALLED := $(VENV)/.installed
PLUGIN_VENV := $(VENV)-plugin
BENCH_INSTALLED := $(VENV)/.installed-bench
PYTEST := $(BIN)/python -m pytest --sample-seed=$(SEED) --hypothesis-seed=$(SEED)

.PHONY: help venv demo compiled test conformance check check-plugin bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1	\2/' | expand -t 14

venv: $(INSTALLED) ## make the virtual environment

$(DEMO_INSTALLED): pyproject.toml tools/install_torch.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "regraft needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/install_torch.py $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	touch $@

$(INSTALLED): $(DEMO_INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev,tvm]'
	touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

demo: $(DEMO_INSTALLED) ## compile a model and compare it with eager
	$(BIN)/regraft demo

test: $(INSTALLED) compiled ## the tests, with a seeded sample of the conformance tables
	$(PYTEST)

conformance: $(INSTALLED) compiled ## all the tests
	$(PYTEST) -m "conformance or not conformance"

# Each process that a test starts would compile it anew where PYTHONDONTWRITEBYTECODE is set: two seconds each.
compiled: $(INSTALLED)
	@$(BIN)/python -m compileall -q regraft

check: $(INSTALLED) ## style, types, layering, sizes
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m tools.check_layering
	$(BIN)/python -m tools.check_size

# An environment of its own over $(VENV), so that nothing else sees the plug-in installed.
check-plugin: $(INSTALLED) ## install the example plug-in beside regraft and test it by name
	rm -rf $(PLUGIN_VENV)
	$(BIN)/python -m venv --without-pip $(PLUGIN_VENV)
	$(BIN)/python tools/link_environment.py $(PLUGIN_VENV)
	$(BIN)/python -m pip --python $(PLUGIN_VENV)/bin/python install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation ./examples/plugin
	cd examples/plugin && $(abspath $(PLUGIN_VENV))/bin/python -m pytest -q -n 0 -p no:cacheprovider tests
	rm -rf $(PLUGIN_VENV)

bench: $(BENCH_INSTALLED) ## the benchmarks
	$(BIN)/python -m benchmarks

clean: ## remove the virtual environment and all caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
