# Every target installs what it needs: a fresh clone needs Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread per process: two processes with one thread each are much faster than one process with two threads.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow mutation lint format ui assets bench gpu-check clean

demo: $(READY)
	$(BIN)/microdit-sweep study=masking_ratio scale=demo
	$(BIN)/microdit-report masking_ratio scale=demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu"

# Test mutants of the model, diffusion, training and statistics: a random sample, or all 6900 with MARGIN=0.
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

# Train the bundled autoencoder and the two CLIPs again (about 80 minutes on one core); see microdit/assets/README.md.
assets: $(READY)
	$(BIN)/python -m microdit.assets.build.vae --minutes 38
	$(BIN)/python -m microdit.assets.build.clip score --minutes 22
	$(BIN)/python -m microdit.assets.build.clip text --minutes 20
	$(BIN)/python -m microdit.assets.build.evaluate

# Time training, sampling, scoring, the data feed, start-up, the queue and reports (about 20 minutes on one core).
bench: $(READY)
	$(BIN)/python tests/benchmarks/bench.py

# Check a GPU: parity, resumption, compilation, speed, memory and a short study (at most 10 minutes on one GPU).
gpu-check: $(READY)
	$(BIN)/python tests/gpu/check.py

clean:
	rm -rf $(VENV) build *.egg-info

# Installed once, and again only if the dependencies change.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed (PYTHON=...)' if sys.version_info < (3, 11) else 0)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
