# Each target makes its own .venv when it is missing or the dependencies changed, and is quick when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-gpu chaos efficiency lint clean

demo: $(READY)
	$(BIN)/adadecode eval --config adadecode/recipes/demo.yaml

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

test-gpu: $(READY)
	$(BIN)/python -m pytest tests/gpu

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

chaos: $(READY)
	$(BIN)/python -m pytest tests/integration/chaos tests/integration/test_ray_run.py -m ''

efficiency: $(READY)
	PYTHONPATH=. $(BIN)/python tests/efficiency/simulate_makespan.py
	PYTHONPATH=. $(BIN)/python tests/efficiency/driver_memory.py --samples 100000

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,report]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
