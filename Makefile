# Everyday commands. `make` alone lists them. The first call sets up .venv, later ones start at once.

VENV ?= .venv
JOBS ?= 2

# The first Python that is new enough; override with `make PYTHON=/path/to/python3.12 ...`.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c '$(NEW_ENOUGH)' 2>/dev/null && { echo "$$python"; break; }; done)

BIN := $(VENV)/bin
PIP_OPTIONS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS)
SAY := @printf '==> %s\n'
COMPILED := pyproject.toml constraints.txt CMakeLists.txt \
	$(shell find src/kvtrove/kernels/cpu -name '*.cpp' -o -name '*.h')

# Every install, the build environment's included, gets the tested versions.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Chat with the bundled demo model (a scripted conversation when nobody types)
	@if [ -t 0 ]; then exec $(BIN)/kvtrove chat; else exec $(BIN)/kvtrove chat --demo; fi

test: lint ## Run all checks and tests, as CI does
	$(SAY) 'pytest on $(JOBS) processes'
	@KVTROVE_CHECK=2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: $(VENV)/.test ## Check style, types and the import contracts
	$(SAY) 'ruff'
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	$(SAY) 'mypy'
	@$(BIN)/mypy
	$(SAY) 'import contracts'
	@$(BIN)/lint-imports --no-cache --no-logo

format: $(VENV)/.test ## Format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix --quiet || true
	@$(BIN)/ruff format

bench: $(VENV)/.run ## Run the micro benchmarks
	@set -e; for script in benchmarks/micro/*.py; do echo "==> $$script"; $(BIN)/python "$$script"; done

clean: ## Remove caches and build results (the environment stays: rm -r .venv)
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -r {} +

# A stamp is touched when its step is complete, so that an interrupted one is repeated.
$(VENV)/.created:
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or newer found: install one, or give it with PYTHON=..."; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is too old: KVTrove needs Python 3.11 or newer"; exit 1; }
	$(SAY) 'creating $(VENV) with $(PYTHON)'
	@"$(PYTHON)" -m venv "$(VENV)" || { echo "'$(PYTHON) -m venv' failed; on Debian: apt install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(SAY) 'installing torch (the largest download)'
	@$(PIP) torch
	@touch $@

$(VENV)/.run: $(VENV)/.torch $(COMPILED)
	$(SAY) 'building and installing kvtrove'
	@$(PIP) --editable '.[server,bench]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(COMPILED)
	$(SAY) 'building and installing kvtrove with the tools of its tests'
	@$(PIP) --editable '.[test,dev]'
	@touch $(VENV)/.run $@
