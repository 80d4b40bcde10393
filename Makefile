PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check format bench clean clean-cache help

help:
	@echo "make demo    set up a virtual environment and run ScPO from scratch (minutes, 2 CPU cores)"
	@echo "make test    set up a virtual environment and run the tests"
	@echo "make check   linter, formatter and type checker"
	@echo "make bench   every benchmark, one after the other"

demo: $(VENV)/.run
	$(BIN)/selftaught run scpo $(DEMO_ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(TEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench
	for name in store sampling tiny_training preference_step kto_step selection decoding blt; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache

clean-cache: $(VENV)/.run
	rm -rf "$$($(BIN)/selftaught env --cache)"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.run

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	touch $@
