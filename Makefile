# make demo   the whole way on this machine: ingest, curate, train two stages, edit, report
# make test   all tests
# Both make their virtual environment from requirements.lock when it is missing.

PYTHON ?= python3.11
VENV ?= .venv
OUT ?= out/demo
ARGS ?=
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

.PHONY: help demo test lint types docs lock clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,3s/^# //p' Makefile

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/sama demo --out $(OUT) $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

lock:
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet torch==2.13.0 mlflow==3.17.2 ".[dev,docs]"
	(sed -n '/^#/p' requirements.lock; .lock-venv/bin/python -m pip freeze --exclude sama-pipelines \
		| sed 's/+cpu//' | sort -f) > requirements.lock.new
	mv requirements.lock.new requirements.lock && rm -rf .lock-venv

clean:
	rm -rf $(VENV) out site
