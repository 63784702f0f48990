# Two commands are all there is to know: `make demo` and `make test`. Both make the environment first.
#
#   make PYTHON=python3.12 test        with another interpreter (3.10 to 3.13)
#   make CONSTRAINTS= clean demo       with the newest versions, torch with CUDA among them
#   make PYTEST_ARGS="-m 'not slow'" test
#   make WORKERS=0 test                one test after the other, in one process

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
WORKERS ?= 3
BENCH_ARGS ?=

AZURITE := azurite@3.37.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench soak clean

help:
	@echo "make demo    train on two workers, kill one, watch the run resume (three minutes)"
	@echo "make test    linters, types, import contracts, all tests: what CI runs"
	@echo "make lint    the same without the tests"
	@echo "make docs    the site, into build/docs"
	@echo "make bench   stall, durability and restore beside the peers and the limit; 20 GB of disk"
	@echo "make soak    a thousand kills, crash states, interrupts, lost nodes, killed drivers, fuzzed parsers: over an hour"
	@echo "make clean   remove the environment and all caches"

demo: $(INSTALLED)
	@$(BIN)/python examples/kill_and_resume.py

test: lint
	@echo "== tests"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(PYTEST_ARGS)

lint: $(INSTALLED)
	@echo "== linter"
	@$(BIN)/ruff check --quiet .
	@echo "== format"
	@$(BIN)/ruff format --quiet --diff .
	@echo "== types"
	@$(BIN)/mypy --no-error-summary
	@echo "== import contracts"
	@report=$$($(BIN)/lint-imports) || { echo "$$report"; exit 1; }

docs: $(INSTALLED)
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs
	@echo "Look at build/docs/index.html"

bench: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) '.[bench]'
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Not collected by `make test`: their names do not begin with test_.
soak: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) '.[soak]'
	@$(BIN)/python -m pytest -s tests/soak/*.py $(PYTEST_ARGS)

clean:
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last: an installation that broke off is begun anew.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is missing or older than 3.10: make PYTHON=python3.11 ..."; exit 1; }
	@echo "Making the environment in $(VENV); the first time this takes some minutes."
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "No venv could be made (Debian and Ubuntu: install python3-venv)."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	@npm install --prefix $(VENV) --silent --no-audit --no-fund --fetch-retries=0 $(AZURITE) \
		|| echo "Azurite could not be installed (it takes npm); pytest will say so again."
	@touch $@
