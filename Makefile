# Each command makes or reuses .venv and installs only when pyproject.toml or constraints.txt changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The CPU build keeps gigabytes of CUDA away; `make test TORCH=torch==2.13.0` takes the default build instead.
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
WORKERS ?= 2
BIN := .venv/bin
# Modules are compiled when they are first imported: of 20,000 files, most never are.
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-all gpu-static lint format clean

demo: .venv/.stamp-demo
	$(BIN)/blast-compile demo

# Workers share the compiled kernels; threads that wait give way, for there are more of them than cores.
test: .venv/.stamp-test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-all: .venv/.stamp-test
	$(BIN)/python -m pytest -m ""

# GPU kernels by their machine code, without a GPU: those whose source changed, and some of the others.
gpu-static: .venv/.stamp-test
	$(BIN)/python -m benchmarks.gpu_static --report gpu-static.md

lint: .venv/.stamp-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.stamp-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

.venv/.stamp-demo: EXTRAS := hf,report
.venv/.stamp-test: EXTRAS := hf,report,test
.venv/.stamp-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --no-compile -c constraints.txt "$(TORCH)" || $(PIP) install --no-compile -c constraints.txt "$(TORCH)" --extra-index-url $(TORCH_INDEX)
	$(PIP) install --no-compile -c constraints.txt setuptools
	$(PIP) install --no-compile -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
