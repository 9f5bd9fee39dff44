# Two commands are enough: make train, make test. Each sets up .venv first if it is missing or older than its recipe.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test lint tensorboard clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## .venv with the tested versions (constraints.txt), about 5 GB

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up $(VENV): about 5 GB, some minutes, once"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

train: $(READY) ## train on the generated sample data, offline: minutes on two cores
	$(BIN)/python -m fish_lightning.train

test: $(READY) ## all tests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(READY) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tensorboard: $(READY) ## browse all runs
	$(BIN)/tensorboard --logdir logs

clean: ## remove .venv and caches; runs in logs/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
