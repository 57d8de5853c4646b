# Every command of the project. `make help` lists them; ARGS="..." goes through to the program that a target runs.

VENV ?= .venv
PEERS ?= 4
BENCH ?= allreduce
WORKERS ?= auto
ARGS ?=

BIN := $(VENV)/bin
ROOMS := node transport gossip dht crdt
CODE := $(wildcard $(ROOMS) tests benchmarks examples)

# Who runs beside whom: tests/workers.py. Not in pytest's own settings: a single file, a debugger, `-s` are better off without.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Some systems forbid it; but the suite starts hundreds of processes, and each would compile the same files again.
unexport PYTHONDONTWRITEBYTECODE

# A stamp means nothing once the folder was moved or the system's Python went away: then the set-up runs again.
$(shell { [ "$$(cat $(VENV)/.made-in)" = "$(CURDIR)" ] && $(BIN)/python -c ''; } 2>/dev/null || rm -f $(VENV)/.stamp-*)

.DEFAULT_GOAL := help
.PHONY: help demo test coverage natlab lint format bench constraints clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  Arguments go through:  make demo ARGS="--steps 300"   make test ARGS="-x tests/crdt"'

demo: $(VENV)/.stamp-demo  ## set up, then four daemons on this machine train one small model
	$(BIN)/noded local --peers $(PEERS) $(ARGS)

test: $(VENV)/.stamp-test  ## set up, then the test suite
	@sh packaging/lab.sh
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

coverage: $(VENV)/.stamp-test  ## the test suite with branch coverage
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage combine
	$(BIN)/python -m coverage report

natlab: $(VENV)/.stamp-test  ## as root: every kind of NAT against every kind, ARGS="--only symmetric,upnp --loss 0.05"
	@sh packaging/lab.sh
	$(BIN)/python -m tests.lab.matrix $(ARGS)

lint: $(VENV)/.stamp-dev  ## ruff and mypy, exactly as a change has to pass them
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(VENV)/.stamp-dev  ## let ruff lay out the code
	$(BIN)/ruff format $(CODE)

bench: $(VENV)/.stamp-test  ## run a benchmark: BENCH=allreduce
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

# Fresh environment, newest versions that the ranges allow, written down. The comment at the top of the file stays.
constraints:  ## write constraints.txt anew: TORCH=2.13.0
	rm -rf build/constraints && mkdir -p build
	python3 -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet 'torch==$(or $(TORCH),2.13.0)' '.[dev]' hatchling editables
	{ grep '^#' constraints.txt; build/constraints/bin/python -m pip freeze --all --exclude pip --exclude noded \
	    | sed -E 's/^torch==([0-9.]+)\+.*/torch==\1/'; } >build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:  ## remove caches and build outputs (not the environment, not your runs)
	rm -rf build dist htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the environment
	rm -rf $(VENV)

# One stamp per set-up, newer than what it was made from: a second `make test` starts at once.
$(VENV)/.stamp-%: pyproject.toml constraints.txt packaging/environment.sh
	@sh packaging/environment.sh $(VENV) $*
