# From nothing but Python 3.11 to 3.13, make and pip: every target sets up .venv by itself.
PYTHON ?= python3
# What pytest is given: make test ARGS="tests/norms -x".
ARGS ?=
# Tests side by side, a file in one process; JOBS=0 runs them in this one, for a debugger.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() or 1, 4))')
# make lock UPGRADE=--upgrade takes the newest releases; without it the pinned ones are kept.
UPGRADE ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# An environment with JAX and without TensorFlow, and the dependencies that it leaves out.
JAX_VENV := .venv-jax
JAX_STAMP := $(JAX_VENV)/.installed
NOT_FOR_JAX := tensorflow tensorflow-datasets importlib_resources
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
# The whole suite runs on TensorFlow; these tests, of layers and gradients, run on JAX as well.
JAX_TESTS := tests/kernels tests/norms tests/probes tests/engine/test_gradients.py \
	tests/engine/test_accumulate.py tests/engine/test_stream.py tests/test_serializable.py

# What builds the sources that come without a wheel (antlr4-python3-runtime, promise) and our own.
BUILD_TOOLS := hatchling setuptools wheel
UV_VERSION := 0.13.8
# fewest: the same versions on every Python, so that what was tested on one holds for all.
PIN = $(VENV)-lock/bin/uv pip compile --no-config --quiet $(UPGRADE) --universal \
	--fork-strategy fewest --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock"

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
define CHECK_PYTHON
@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { echo "normbench needs Python 3.11 to 3.13;" \
	"$(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo not one that runs):" \
	"try make PYTHON=python3.12" >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart jax test test-slow lint types docs lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

quickstart: $(STAMP) ## train 3 norms x 3 batch sizes x 3 seeds on real digits (no download), and report
	$(BIN)/normbench sweep +experiment=quickstart store=.quickstart/runs
	$(BIN)/normbench report .quickstart/runs --out .quickstart/report
	@echo "The command normbench is in $(BIN). To go on:"
	@echo "  source $(BIN)/activate"
	@echo "  normbench run norm=gn batch=16 dataset=digits arch=resnet8 epochs=5"

jax: $(JAX_STAMP) ## set up .venv-jax: normbench with JAX, without TensorFlow
	@echo "The command normbench is in $(JAX_VENV)/bin. To go on:"
	@echo "  source $(JAX_VENV)/bin/activate"
	@echo "  normbench run backend=jax norm=gn batch=16 dataset=digits arch=resnet8 epochs=5"
	@echo "For NVIDIA GPUs, once: pip install 'jax[cuda13]'"

test: $(STAMP) ## run the tests (ARGS="tests/norms -x" for some of them)
ifeq ($(ARGS),)
	KERAS_BACKEND=jax $(PYTEST) $(JAX_TESTS)
endif
	$(PYTEST) $(ARGS)

test-slow: $(STAMP) ## run the tests that test leaves out because they are slow
	KERAS_BACKEND=jax $(PYTEST) $(JAX_TESTS) -m "slow and not slurm"
	$(PYTEST) -m "slow and not slurm"

lint: $(STAMP) ## check style and formatting with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check types with pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP) ## build the documentation's site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html."

lock: ## pin every dependency by hash, for all supported Pythons (UPGRADE=--upgrade)
	$(CHECK_PYTHON)
	@test -x $(VENV)-lock/bin/pip || $(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/pip install --quiet uv==$(UV_VERSION)
	@echo $(BUILD_TOOLS) | tr ' ' '\n' | $(PIN) - --output-file requirements-build.lock
	@$(PIN) pyproject.toml --extra dev --constraints requirements-build.lock \
		--output-file requirements.lock
	@echo $(NOT_FOR_JAX) | tr ' ' '\n' | $(PIN) pyproject.toml --extra jax --excludes - \
		--constraints requirements.lock --output-file requirements-jax.lock

clean: ## remove the environment, the caches and what quickstart made
	rm -rf $(VENV) $(VENV)-lock $(JAX_VENV) .quickstart site build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-build-isolation: what builds a package is pinned by hash like what is built.
# $(call SET_UP,environment,lock,size of the download)
define SET_UP
$(CHECK_PYTHON)
@echo "setting up $(1): downloads about $(3) the first time, and takes a few minutes"
@test -x $(1)/bin/pip || $(PYTHON) -m venv $(1)
@$(1)/bin/pip install --quiet --require-hashes -r requirements-build.lock
@$(1)/bin/pip install --quiet --require-hashes --no-build-isolation -r $(2)
@$(1)/bin/pip install --quiet --no-deps --no-build-isolation -e .
@touch $@
endef

$(STAMP): requirements-build.lock requirements.lock pyproject.toml
	$(call SET_UP,$(VENV),requirements.lock,1 GB)

$(JAX_STAMP): requirements-build.lock requirements-jax.lock pyproject.toml
	$(call SET_UP,$(JAX_VENV),requirements-jax.lock,0.3 GB)
