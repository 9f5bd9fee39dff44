# Two commands are enough: make train, make test. Both first create .venv if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test lint tensorboard clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with the tested versions (constraints.txt), about 5 GB

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; choose another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "creating $(VENV): about 5 GB, takes some minutes, only once"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

train: $(READY) ## train on the generated sample data: offline, minutes on two cores
	$(BIN)/python -m fish_lightning.train

test: $(READY) ## run all tests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: $(READY) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tensorboard: $(READY) ## browse all runs
	$(BIN)/tensorboard --logdir logs

clean: ## remove .venv and caches, but not the runs in logs/
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
