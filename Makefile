# `make train` and `make test` are all a newcomer needs; both make .venv when it is missing or out of date.
# ARGS go to train.py: make train ARGS="config/tinyshakespeare_char.toml --max_iters=100"

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
ARGS ?= config/shakespeare_char.toml

.PHONY: train test lint clean

train: .venv/train
	@.venv/bin/python train.py $(ARGS)

test: lint
	@.venv/bin/python -m pytest

lint: .venv/dev
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy --no-error-summary

clean:
	rm -rf .venv

# An installation is up to date when its stamp is newer than the file it was made from.
.venv/train: requirements.txt
	@$(call install,requirements.txt)

.venv/dev: requirements.txt requirements-dev.txt
	@$(call install,requirements-dev.txt)

define install
	test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer was found; make train PYTHON=/path/to/python3" >&2; exit 2; }
	echo "installing $(1) into .venv (once)"
	test -x .venv/bin/python || $(PYTHON) -m venv .venv || { rm -rf .venv; echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $(1)
	touch $@
endef
