# Two commands: `make demo` and `make test`. Each makes .venv, installs what it needs, and does its job.

PYTHON ?= python3
NAME   ?= family
VENV   ?= .venv
BIN    := $(VENV)/bin
# Named on the command line so that a CPU build that pip can see is taken; the package itself also runs on 2.11 and 2.12.
TORCH  := torch==2.13.*

.PHONY: demo test test-slow check benchmarks clean

demo: $(VENV)/.demo
	$(BIN)/puyu demo $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmarks: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(NAME) $(ARGS)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "PuyuLM needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' -e '.[data]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' -e '.[dev,data]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
