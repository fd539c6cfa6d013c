# `make help` lists what there is. Flags for the command itself: make train ARGS="--steps 50"; CUDA 12: make train CUDA=cu12
PYTHON ?= python3
CUDA ?= cu13
ARGS ?=
BIN := .venv/bin

.PHONY: help train test check format docs lock .venv
help:  ## what you can make
	@grep -hE '^[a-z.]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.]+):.*## (.*)/  make \1\t\2/' | expand -t 16

train: .venv/train-$(CUDA)  ## the demo: render a small data set, train a Video Deep InfoMax encoder on it
	$(BIN)/accelerate launch train.py --objective vdim $(ARGS)

test: .venv/test-$(CUDA)  ## every test, in two processes of one BLAS thread each
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

check: .venv/test-$(CUDA)  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/test-$(CUDA)  ## format the code, and mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/test-$(CUDA)  ## the documentation site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.venv: .venv/train-$(CUDA)  ## install what training needs, and nothing else

# One set of packages for training, a larger one for tests: each is pinned, with hashes, and made by `make lock`.
.venv/train-cu13: constraints.txt pyproject.toml | .venv/python
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --require-hashes -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/test-cu13: constraints-test.txt .venv/train-cu13
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --require-hashes -r constraints-test.txt
	touch $@

# CUDA 12: the same versions, without hashes, since its DALI is another package.
.venv/train-cu12: EXTRAS = cu12
.venv/test-cu12: EXTRAS = cu12,dev
.venv/train-cu12 .venv/test-cu12: constraints-test.txt pyproject.toml | .venv/python
	grep -v -- --hash constraints-test.txt | tr -d '\\' > .venv/pins.txt
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --constraint .venv/pins.txt --editable ".[$(EXTRAS)]"
	touch $@

.venv/python:
	$(PYTHON) -c 'import sys; sys.exit("Slipstream needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	touch $@

LOCK := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet
lock:  ## pin the newest version of every package, with hashes (needs uv: pip install uv)
	$(LOCK) --extra cu13 --extra dev --upgrade --output-file constraints-test.txt
	$(LOCK) --extra cu13 --upgrade --constraint constraints-test.txt --output-file constraints.txt
