# What a newcomer types. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 7860
PHOTOS ?=
MODEL ?=
IMAGES ?=
# Tests that run at a time, each with one core.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((cores < 2 ? cores : 2)))
# A file's tests stay on one worker, since they share what its fixtures train and export.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# uv installs in a tenth of pip's time; it is used where it is there.
UV := $(shell command -v uv 2>/dev/null)
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check)
# One line that says what is being fetched now, in place of pip's hundreds.
ONE_LINE = awk '/^ *(Collecting|Downloading|Using cached|Installing)/ { printf "\r\033[K  %.76s", $$0; fflush() } END { print "" }'
SHELL := bash
.SHELLFLAGS := -o pipefail -c

.PHONY: help demo test test-all check bench bench-gpu verify-zoo docs setup clean

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.runtime $(if $(MODEL),$(VENV)/.adopt) ## Open the search page; PHOTOS=photos/ and MODEL=dinov2-small if you like
	@$(BIN)/featkit demo $(if $(PHOTOS),"$(PHOTOS)") $(if $(MODEL),--model "$(MODEL)") --port $(PORT) || { code=$$?; \
	  ! (exec 3<>/dev/tcp/127.0.0.1/$(PORT)) 2>/dev/null || echo "With make, another port is named so: make demo PORT=7942"; \
	  exit $$code; }

test: $(VENV)/.all ## Install everything else and run all tests, two at a time; WORKERS=1 if you like
	@$(PYTEST)

test-all: $(VENV)/.all ## The same with the tests that take minutes
	@$(PYTEST) -m "slow or not slow" --timeout 3600

check: $(VENV)/.all ## Lint, types, spelling and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/lint-imports

bench: $(VENV)/.all ## Print the figures of tests/benchmarks and write them to its results/
	@for file in $(filter-out %/bench_gpu.py %/bench_gpu_index.py,$(wildcard tests/benchmarks/bench_*.py)); do \
	  echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-gpu: $(VENV)/.all ## Print the figures of training and of building an index on a GPU; IMAGES=folder/ if you like
	@$(BIN)/python tests/benchmarks/bench_gpu.py $(if $(IMAGES),--images "$(IMAGES)")
	@$(BIN)/python tests/benchmarks/bench_gpu_index.py

verify-zoo: $(VENV)/.all ## Export every published backbone whole, with random weights, and compare it with torch
	@$(BIN)/python -m tests.export.verify_zoo

docs: $(VENV)/.all ## Build the documentation into build/docs; a warning is an error
	@$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs build/docs
	@echo "Open build/docs/index.html"

setup: $(VENV)/.all ## Install everything without running anything

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "featkit needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python has no venv module or no space is left; on Debian and Ubuntu: apt-get install python3-venv (df -h . shows the space)"; exit 1; }

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing the runtime (onnxruntime, faiss, gradio) into $(VENV) ..."
	@$(INSTALL) -c constraints.txt -e '.[cpu,demo]' | $(ONE_LINE) || \
	  { echo "The install failed; check the network and the space left (df -h .), then run make again."; exit 1; }
	@touch $@

$(VENV)/.adopt: $(VENV)/.runtime
	@echo "Installing what makes a model file of a published one (onnx, huggingface-hub) into $(VENV) ..."
	@$(INSTALL) -c constraints.txt onnx huggingface-hub | $(ONE_LINE)
	@touch $@

$(VENV)/.all: $(VENV)/.runtime
	@echo "Installing what training, export and the tests need (torch, timm, onnx, ...) into $(VENV) ..."
	@# torch first and by pip, which knows of CPU builds that a machine keeps for it; the rest then finds it in place.
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch | $(ONE_LINE)
	@$(INSTALL) -c constraints.txt -e '.[cpu,openvino,demo,serve,train,export,evaluate,formats,datasets,watch,docs,dev]' | $(ONE_LINE)
	@touch $@

clean: ## Remove the environment and what tools leave behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
