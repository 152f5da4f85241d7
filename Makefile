# make demo · make test · make lint · make oracle: each sets itself up in .venv, from constraints.txt.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint oracle clean

demo: $(VENV)/ready
	$(BIN)/python -m examples.tour

test: $(VENV)/ready
	$(PYTEST) --ignore=tests/oracle

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

oracle: $(VENV)/ready-oracle
	$(PYTEST) tests/oracle

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/ready: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/ready-oracle: $(VENV)/ready
	$(INSTALL) --editable '.[oracle]'
	touch $@
