# Everything sets itself up: a fresh clone needs Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a process: two one-thread processes beside each other beat one process with two threads by far.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow mutation lint format ui assets bench clean

demo: $(READY)
	$(BIN)/microdit-sweep study=masking_ratio scale=demo
	$(BIN)/microdit-report masking_ratio scale=demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu"

# Mutants of a random sample (MARGIN=0 tries all of about 6900) of the model, the diffusion, training and the statistics.
MARGIN ?= 0.04
mutation: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[mutation]"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/mutation.py --margin $(MARGIN)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(READY)
	$(BIN)/microdit-sweep ui

# Trains the shipped autoencoder and the two CLIPs anew (about 80 minutes on one core); microdit/assets/README.md has the figures.
assets: $(READY)
	$(BIN)/python -m microdit.assets.build.vae --minutes 38
	$(BIN)/python -m microdit.assets.build.clip score --minutes 22
	$(BIN)/python -m microdit.assets.build.clip text --minutes 20
	$(BIN)/python -m microdit.assets.build.evaluate

bench: $(READY)
	$(BIN)/python tests/benchmarks/masking_speed.py

clean:
	rm -rf $(VENV) build *.egg-info

# Installed once; again only when the dependencies change.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed (PYTHON=...)' if sys.version_info < (3, 11) else 0)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
