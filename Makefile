# make run          set up .venv, run the main experiment, say how to open its curves
# make test         set up .venv, then lint, types, import contract, tests
# make page         run every experiment and build docs/experiments.md from what they found (a quarter of an hour)
# make tensorboard  open the main experiment's logs at http://localhost:6006 (LOGS=runs for all)
#
# PYTHON=python3.12 picks another interpreter; PIP_ARGS="..." is passed to pip (another index, say); ARGS="--quick" to the experiment.

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
WORKERS ?= 2
LOGS ?= runs/vanishing_exploding

# Relative on purpose: the checkout may lie under a path with a space in it.
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt $(PIP_ARGS)

.PHONY: run page test lint types contract pytest tensorboard clean
.DEFAULT_GOAL := run

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "torchnotes needs Python 3.10 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.experiments: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing torchnotes and what its experiments need (torch is large: minutes on a slow line)"
	@$(PIP_INSTALL) -e '.[experiments]'
	@touch $@

$(VENV)/.dev: $(VENV)/.experiments
	@echo "Installing the test tools"
	@$(PIP_INSTALL) -e '.[experiments,dev]'
	@touch $@

run: $(VENV)/.experiments
	@$(PY) -m experiments.vanishing_exploding $(ARGS)

page: $(VENV)/.experiments
	@$(PY) -m experiments.page $(ARGS)

test: lint types contract pytest

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.dev
	$(PY) -m mypy

contract: $(VENV)/.dev
	$(PY) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())'

pytest: $(VENV)/.dev
	$(PY) -m pytest -n $(WORKERS) $(ARGS)

tensorboard: $(VENV)/.experiments
	@test -d "$(LOGS)" || { echo "There are no logs in $(LOGS) yet: make run writes them."; exit 1; }
	@echo "Open http://localhost:6006/?smoothing=0 (smoothing would bend the short curves); Ctrl-C stops the server"
	@$(PY) -m tensorboard.main --logdir "$(LOGS)" --port 6006

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
