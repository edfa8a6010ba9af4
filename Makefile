# make quickstart   everything from an empty machine to a validated model
# make test         lint, formatting, types and tests
# make setup        the environment alone
# make long         the tests that take minutes
# make gpu          checks and measurements of a machine with a GPU, in ten minutes; without a network, with its own
#                   torch and a folder of wheels: make gpu WHEELS=folder. GPU holds arguments of benchmarks/gpu.py

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: setup quickstart test long gpu

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# on tensors this small more threads only wait, and another number of them gives another model
quickstart: export OMP_NUM_THREADS := 1
quickstart: setup
	$(BIN)/python train.py fit --config configs/quickstart.yaml --ckpt_path last
	$(BIN)/python train.py validate --config configs/quickstart.yaml --ckpt_path last

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

long: setup
	$(BIN)/python -m pytest -m long

gpu:
ifdef WHEELS
	$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade --target build/wheels $(WHEELS)/*.whl
	PYTHONPATH=build/wheels:$(PYTHONPATH) $(PYTHON) -m benchmarks.gpu $(GPU)
else
	$(MAKE) setup
	$(BIN)/python -m pip install --quiet --no-build-isolation '.[cuda]'
	$(BIN)/python -m benchmarks.gpu $(GPU)
endif
