# Needs git, make and Python 3.11 or newer with venv. The first run of any target installs the rest into .venv.
PYTHON ?= python3
BIN := .venv/bin
# No test takes five minutes; one that hangs says where, and the others go on. Tests start a hundred interpreters, each
# of which would compile torch's sources for two seconds were the bytecode not kept.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -q -ra -n 2 --dist worksteal --timeout 900 --durations 10
# What requirements.lock downloads and fills, measured on Linux x86-64; measure again after `make lock`.
DOWNLOAD := 3.3 GB
DISK := 6.5 GB

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 @/p' Makefile | tr @ '\t' | expand -t 18

quick: install ## compare the methods on digits, and report
	$(BIN)/python runner.py --suite quick

smoke: install ## the same path through the code in a minute; its accuracies mean nothing
	$(BIN)/python runner.py --suite smoke

results: install ## pages and figures of docs/results from the shipped records; our own words in them stay
	$(BIN)/python -m reports.results

test: lint ## everything that has to hold: lint, types, tests
	$(PYTEST)

test-all: lint ## the same with the long ones: every injected fault
	$(PYTEST) -m ''

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: ## only install; does nothing while requirements.lock stays the same
	@cmp -s requirements.lock .venv/installed || $(MAKE) --no-print-directory environment

environment:
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "Installing into .venv: up to $(DOWNLOAD) to download, $(DISK) on disk. This happens once."
	@$(PYTHON) -m venv --clear .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	@$(BIN)/pip install -q --disable-pip-version-check $(WHEELS) -r .venv/uv.lock
	@$(BIN)/uv pip sync --python $(BIN)/python $(WHEELS) requirements.lock || { \
	  echo "uv could not install (above: why); trying pip, which takes minutes."; \
	  $(BIN)/pip install -q --disable-pip-version-check $(WHEELS) -r requirements.lock; }
	@cp requirements.lock .venv/installed

WHEELS := --require-hashes --only-binary :all:

define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed; $(PYTHON) is %d.%d. Install one (Ubuntu 22.04: sudo apt install"
             " python3.11-venv) and name it: make PYTHON=python3.11 quick" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    sys.exit("$(PYTHON) comes without venv. Debian, Ubuntu: sudo apt install python%d.%d-venv" % sys.version_info[:2])
endef
export CHECK_PYTHON

lock: install ## resolve pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --upgrade --only-binary :all: \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links -q -o requirements.lock

clean: ## remove .venv and the tools' caches; results in runs/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help quick smoke results test test-all lint install environment lock clean
