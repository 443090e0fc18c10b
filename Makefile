# `make run` and `make test` need Python 3.11 or newer, and nothing else: each sets up what it uses.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: run test lint mutants chaos soak bench clean

run: $(STAMP)
	@exec $(BIN)/python asgi_app.py

test: $(STAMP)
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: $(STAMP)
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

mutants: $(STAMP)
	@$(BIN)/python tests/mutants.py

# CHAOS_SEED=4 repeats the fourth schedule
chaos: $(STAMP)
	@CHAOS_SEEDS=$${CHAOS_SEEDS:-50} $(BIN)/python -m pytest -s tests/test_chaos.py $(ARGS)

soak: $(STAMP)
	@SOAK_S=$${SOAK_S:-120} $(BIN)/python -m pytest -s tests/test_soak.py $(ARGS)

bench: $(STAMP)
	@$(BIN)/python bench/hot_path.py

clean:
	rm -rf $(VENV)

$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Draftstream needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@echo "Setting up $(VENV) (once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements-dev.txt
	@touch $(STAMP)
