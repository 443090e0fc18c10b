# Needs Python 3.11 or newer and make; everything else comes into .venv.
#   make run     the service on http://localhost:8005, with the offline model and an embedded PostgreSQL unless
#                OPENAI_API_KEY, OPENAI_BASE_URL and DATABASE_URL say otherwise (HOST, PORT: where it listens)
#   make test    every test        make lint    formatter, linter, types
#   make bench   the measurements  make clean   removes .venv and caches, and leaves .data alone

PYTHON ?= python3

# All paths are relative, so the checkout may live under a path with spaces.
BIN := .venv/bin
STAMP := .venv/installed
SOURCES := $(wildcard *.py tests/*.py bench/*.py)

.PHONY: run test lint format bench clean
.DELETE_ON_ERROR:

# exec: Ctrl-C and SIGTERM reach the service itself, and make reports its exit code.
run: $(STAMP)
	@exec $(BIN)/python asgi_app.py

test: $(STAMP)
	@exec $(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy $(SOURCES)

format: $(STAMP)
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

bench: $(STAMP)
	@for bench in bench/[!_]*.py; do echo "== $$bench"; PYTHONPATH=. $(BIN)/python "$$bench" || exit 1; done

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment whose interpreter has gone (an upgrade of the system) is made anew.
ifneq ($(shell $(BIN)/python -c 'print("works")' 2>/dev/null),works)
.PHONY: $(STAMP)
endif

# The stamp is written last: an installation that was interrupted is done again. Nothing but `python -m` is used of the
# environment, as its scripts name the path that they were installed under.
$(STAMP): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1)' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv (once; about a minute) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
