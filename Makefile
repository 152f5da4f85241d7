# make demo · make test · make lint · make oracle: each sets itself up in .venv, from constraints.txt, and builds the
# C++ library where there is a compiler.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal
LIBRARY = xfn/_cpu.so
SOURCES = setup.py $(wildcard xfn/csrc/*/*)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint oracle clean

demo: $(VENV)/ready $(LIBRARY)
	$(BIN)/python -m examples.tour

test: $(VENV)/ready $(LIBRARY)
	$(PYTEST) --ignore=tests/oracle

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

oracle: $(VENV)/ready-oracle $(LIBRARY)
	$(PYTEST) tests/oracle

clean:
	rm -rf $(VENV) $(LIBRARY) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(LIBRARY): $(SOURCES) | $(VENV)/ready
	$(BIN)/python setup.py --quiet build_ext --inplace

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch setuptools
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

$(VENV)/ready-oracle: $(VENV)/ready
	$(INSTALL) jax
	touch $@
