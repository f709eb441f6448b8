.PHONY: install quickstart demo docs test test-fast test-torchao lint

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extras for simulators beyond the quickstart's: make test SIMULATORS=libero,gym
SIMULATORS ?=
EXTRAS := train,sim,server,demo,docs,deepspeed,quantization,export,dev$(if $(SIMULATORS),$(shell echo ,)$(SIMULATORS))
# One thread a process: two torch threads on busy cores spin instead of working.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export MKL_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

install: $(VENV)/.installed

# torch first, from the constraints file: unpinned it would bring gigabytes of CUDA libraries.
$(VENV)/.installed: setup.cfg constraints.txt scripts/install_system_libraries.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[$(EXTRAS)]'
	bash scripts/install_system_libraries.sh $(BIN)/python
	touch $@

quickstart: install
	$(BIN)/hf-vla quickstart

demo: install
	$(BIN)/hf-vla demo

# The documentation as a site, in site/. Only installing needs a network.
docs:
	@$(BIN)/python -c "import material, mkdocstrings" 2>/dev/null || $(MAKE) install || \
	    { echo "error: the site needs mkdocs, which could not be installed; try 'make install' with a network" >&2; exit 1; }
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir site && echo "the site is in site/: open site/index.html"

# All tests; and those for daily work, which leave out what starts processes or trains for long. The summary names the
# simulators that are not installed, whose tests are skipped.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# transformers imports torchao wherever it finds it, which slows down every start: it lies apart, for its own tests.
test-torchao: install
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/torchao -c constraints.txt torchao
	PYTHONPATH=$(VENV)/torchao $(BIN)/python -m pytest tests/inference/test_precision.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
