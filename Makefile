# `make demo` shows what Coldframe does, `make test` proves it. Both install what they need into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test lint types tests format proto clean

help:
	@echo "make demo     build an index of the sample corpus, serve it, ask it four questions"
	@echo "make test     lint, types and tests"
	@echo "make format   let ruff format the code"
	@echo "make proto    regenerate the gRPC stubs and docs/api.md after a change under proto/"
	@echo "make clean    remove what the other targets made"

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

demo: install
	@$(BIN)/python -m examples.demo

test: lint types tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# A file of tests stays with one process: what its tests share is made once. Tests start the programs again and again,
# so their modules are compiled once, also where the environment says that nothing compiled is to be kept.
tests: export PYTHONDONTWRITEBYTECODE =
tests: install
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: install
	$(BIN)/python proto/generate.py
	$(BIN)/python proto/document.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
