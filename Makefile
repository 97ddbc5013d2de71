# make demo   install what the robot runs (no torch) and do the main job in simulation
# make test   install that and the test extras into the same environment; lint, types, tests
# make clean  remove what these two made

PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard edge/native/*.cpp edge/native/*.hpp)
# One line a package; what pip says beyond that is of use only when it fails, and then it says so on stderr.
BRIEFLY := | awk '$$1 ~ /^(Collecting|Processing)$$/ {sub(".*/", "", $$2); print "  " $$2; fflush()} \
	/^ *Building (editable|wheel) for/ && !/finished/ {print "  building " $$4; fflush()}'

# The same commit gives the same examples to its properties: profile `ci` of hypothesis.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --hypothesis-profile=ci

# A shared machine that stalls for a fifth of a second makes an arm hold, as it should, and a test in real time fail: what
# failed is tried once more.
AGAIN = $(PYTEST) --last-failed --last-failed-no-failures none
SIDE_BY_SIDE = -n 2 --dist loadfile

.PHONY: demo install test browser clean

demo: install
	$(BIN)/vlar1 demo $(DEMO_ARGS)

install: $(VENV)/.installed

test: $(VENV)/.installed-test browser
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m alone || $(AGAIN) -m alone
	$(PYTEST) -m paired $(SIDE_BY_SIDE) || $(AGAIN) -m paired
	$(PYTEST) -m "not alone and not paired" $(SIDE_BY_SIDE)

# The operator's page is tested in a real Chromium: the system's, installed where that may be, else playwright's own.
browser: $(VENV)/.installed-test
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		echo "installing Chromium"; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; \
		then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium > /dev/null; \
		else $(BIN)/playwright install chromium; fi; }

$(BIN)/python:
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BUILD_INPUTS) | $(BIN)/python
	@echo "installing vlar1-edge into $(VENV)"
	@$(PIP) install -c constraints.txt -e . $(BRIEFLY)
	@touch $@

# torch comes first and by its exact version: left to another package's looser wish, pip takes a newer one with
# gigabytes of CUDA libraries.
$(VENV)/.installed-test: $(BUILD_INPUTS) | $(BIN)/python
	@echo "installing vlar1-edge with its test extras into $(VENV)"
	@$(PIP) install torch==2.13.0 $(BRIEFLY)
	@$(PIP) install -c constraints.txt -e '.[test]' $(BRIEFLY)
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
