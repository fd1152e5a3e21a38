# Everything a person types: make demo, make test. The environment is .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test chaos lint bench clean

help:
	@echo "make demo    set up, train on real digits, write a report and print its path (about 5 minutes)"
	@echo "make test    set up, run the tests"
	@echo "make chaos   the tests of reliability at full size; writes docs/reliability.md"
	@echo "make lint    ruff and mypy"
	@echo "make bench   print the benchmark tables"

setup: $(STAMP)

# uv looks for wheels on the local disk only when told so; pip reads PIP_FIND_LINKS by itself.
$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  echo "setting up $(VENV) with uv"; \
	  export UV_FIND_LINKS="$${PIP_FIND_LINKS:-}"; \
	  uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'; \
	else \
	  echo "setting up $(VENV) with pip"; \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $@

demo: setup
	$(BIN)/elucidiff demo

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# One thread a process: the tensors are small, and the tests start several processes themselves.
chaos: setup
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/chaos.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf $(VENV) runs build *.egg-info src/*.egg-info
