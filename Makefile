# make demo    set up, climb the whole nano ladder on a CPU, print the table, write the report   (SEED=1 for another world)
# make test    set up, lint, run the tests
# make chaos   climb it twice, once with every rung killed, stopped and damaged; the weights must be the same   (CHAOS=--quick)
# make compat  each rung once in miniature, read by transformers 4 in an environment of its own (DIRS="out/nano/sft ..." for others)
PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
# Seed 0 lives in out/nano, any other beside it.
WORK ?= $(if $(filter 0,$(SEED)),.,out/seed$(SEED))

export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: setup demo test lint chaos compat
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say PYTHON=python3.12 or the like")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	@SEED=$(SEED) WORK=$(WORK) bash recipes/ladder.sh nano

lint: setup
	ruff check .
	ruff format --check .

# Models of tests are too small to share among threads: a file of tests a core, one thread each.
test: lint
	OMP_NUM_THREADS=1 python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

chaos: setup
	python tests/faults/chaos.py $(if $(filter .,$(WORK)),out/chaos,$(WORK)) --seed $(SEED) $(CHAOS)

.venv-compat/.installed: tests/compat/requirements.txt
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --quiet --requirement tests/compat/requirements.txt
	@touch $@

compat: setup .venv-compat/.installed
	python tests/compat/compare.py .venv-compat/bin/python $(DIRS)
