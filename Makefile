# Everything needs Python 3.11 or newer and make: each target sets up the packages that it uses in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVICE := $(VENV)/service.installed
TESTS := $(VENV)/tests.installed
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command "make lock"

# A file is tested by one worker, so that a module's fixtures are made once. tests/conftest.py gives the order.
PYTEST := -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help run test lint coverage mutants chaos soak bench lock audit clean

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

run: $(SERVICE) ## set up, and serve on http://localhost:8005
	@exec $(BIN)/python asgi_app.py

test: $(TESTS) ## set up, and run every test; ARGS="-k redline" runs some
	@$(BIN)/python $(PYTEST) $(ARGS)

lint: $(TESTS) ## formatter, linter and types
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

coverage: $(TESTS) ## run every test, and fail below the floor of branch coverage
	@rm -f .coverage*
	@$(BIN)/python -m coverage run $(PYTEST) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report

mutants: $(TESTS) ## remove one guard at a time, and show the test that fails; ARGS="the lease" chooses
	@$(BIN)/python tests/mutants.py $(ARGS)

chaos: $(TESTS) ## 50 random schedules of faults; CHAOS_SEED=4 repeats the fourth
	@CHAOS_SEEDS=$${CHAOS_SEEDS:-50} $(BIN)/python -m pytest -s tests/test_chaos.py $(ARGS)

soak: $(TESTS) ## clients come and go for SOAK_S seconds (120), and leave nothing behind
	@SOAK_S=$${SOAK_S:-120} $(BIN)/python -m pytest -s tests/test_soak.py $(ARGS)

bench: $(TESTS) ## measure the hot path anew; writes bench/RESULTS.md
	@$(BIN)/python bench/hot_path.py

lock: $(TESTS) ## write the lock files from pyproject.toml; UPGRADE="--upgrade-package NAME" takes the newest
	@$(COMPILE) pyproject.toml $(UPGRADE) --output-file requirements.txt
	@$(COMPILE) pyproject.toml $(UPGRADE) --group run --constraint requirements.txt --output-file deploy/requirements-local.txt
	@$(COMPILE) pyproject.toml $(UPGRADE) --group dev --constraint deploy/requirements-local.txt --output-file tests/requirements.txt
	@$(COMPILE) $(UPGRADE) --no-deps --group llamacpp --output-file tests/requirements-llamacpp.txt

audit: $(TESTS) ## look the locked packages up among the known vulnerabilities; 1: found, 2: could not look
	@$(BIN)/python .ci/audit.py $(BIN)/uv requirements.txt deploy/requirements-local.txt tests/requirements.txt tests/requirements-llamacpp.txt

clean: ## remove .venv
	rm -rf $(VENV)

# A change of what runs sets the environment up anew; the tests' packages come on top.
$(SERVICE): deploy/requirements-local.txt
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON). Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.13 run" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Draftstream needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Name a newer one: make PYTHON=python3.13 run")'
	@rm -rf $(VENV)
	@$(PYTHON) .ci/install.py $(VENV) $<
	@touch $@

$(TESTS): tests/requirements.txt $(SERVICE)
	@$(BIN)/python .ci/install.py $(VENV) $<
	@touch $@
