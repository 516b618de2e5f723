# make train: install, then train QMP on PointReach, or resume.   make test: install, then lint and test.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install train test

install: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and "qmp needs Python 3.10 to 3.13; choose one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install 'pip>=24'  # that of Python 3.10 tries combinations of versions without end
	$(BIN)/pip install -r requirements.txt
	touch $@

.venv/benchmark: .venv/installed requirements-benchmark.txt
	$(BIN)/pip install -r requirements-benchmark.txt
	touch $@

train: install
	$(BIN)/python qmp_sac.py $(if $(wildcard runs/first/checkpoint.pt),--resume,--run-dir) runs/first
	$(BIN)/python benchmark/plot.py runs/first

test: .venv/benchmark
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2
