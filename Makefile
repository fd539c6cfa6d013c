# make train   the demo: renders a small data set, trains a Video Deep InfoMax encoder, says where it lies
# make test    every test, in two processes of one BLAS thread each;   make check   formatting, lint, types
# Other flags: make train ARGS="--steps 50";   CUDA 12 machines: make train CUDA=cu12
PYTHON ?= python3
CUDA ?= cu13
ARGS ?=

.PHONY: .venv train test check
train: .venv
	.venv/bin/accelerate launch train.py --objective vdim $(ARGS)

test: .venv
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile $(ARGS)

check: .venv
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

.venv: .venv/installed-$(CUDA)

.venv/installed-%: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Slipstream needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*,dev]"
	touch $@
