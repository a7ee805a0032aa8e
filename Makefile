# `make train` and `make test` are all a newcomer needs. Both make .venv when it is missing or out of date.
# ARGS go to train.py:  make train ARGS="config/tinyshakespeare_char.toml --max_iters=1000"

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ARGS ?= config/shakespeare_char.toml
WORKERS ?= auto

.PHONY: train test test-all lint

train: .venv/train.done
	@.venv/bin/python train.py $(ARGS)

test: lint
	@.venv/bin/python -m pytest -n auto

# Also the slow tests: minutes of killing, filling and fuzzing. Some wait, so there may be more of them than cores.
test-all: lint
	@.venv/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "slow or not slow"

lint: .venv/dev.done
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --check --quiet . || { echo 'error: format it with .venv/bin/ruff format' >&2; exit 1; }
	@.venv/bin/mypy --no-error-summary

# An installation is done when this file is newer than the requirements it came from.
.venv/train.done: requirements.txt
	$(call install,requirements.txt)

.venv/dev.done: requirements-dev.txt requirements.txt
	$(call install,requirements-dev.txt)

define install
	@test -n "$(PYTHON)" || { echo "error: needs Python 3.11 or newer; name yours with PYTHON=/path/to/python3" >&2; exit 2; }
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "installing $(1) into .venv, once; torch is large"
	@.venv/bin/python -m pip install --disable-pip-version-check -r $(1)
	@touch $@
endef
