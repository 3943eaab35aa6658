# Two commands: `make run` trains the default recipe, `make test` runs the tests.
# Both install into .venv first when it is missing or older than the pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install run test format lint types check bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Shoal needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

run: $(STAMP)
	$(BIN)/shoal train --workers 2

# What measures this machine's memory runs by itself.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/test_micro_batch.py
	$(BIN)/python -m pytest tests/test_micro_batch.py

format: $(STAMP)
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: $(STAMP)
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

bench: $(STAMP)
	$(BIN)/python benchmarks/exchange.py && $(BIN)/python benchmarks/step.py

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .ruff_cache
