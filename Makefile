# Each target makes its own .venv when it is missing or the dependencies changed, and is quick when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready

.PHONY: demo test test-slow test-gpu chaos fuzz mutations efficiency lint docs clean

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

fuzz: $(READY)
	ADADECODE_FUZZ=whole $(BIN)/python -m pytest tests/fuzz --numprocesses 2

mutations: $(READY)
	$(BIN)/python -m tests.mutations

efficiency: $(READY)
	PYTHONPATH=. $(BIN)/python tests/efficiency/simulate_makespan.py
	PYTHONPATH=. $(BIN)/python tests/efficiency/simulate_bad_places.py
	PYTHONPATH=. $(BIN)/python tests/efficiency/driver_memory.py --samples 100000
	PYTHONPATH=. $(BIN)/python tests/efficiency/scheduler_cost.py
	PYTHONPATH=. $(BIN)/python tests/efficiency/driver_scaling.py --actors 8
	PYTHONPATH=. $(BIN)/python tests/efficiency/job_overhead.py --repeats 1
	PYTHONPATH=. $(BIN)/python tests/efficiency/bucket_commits.py --shards 300

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(DOCS_READY)
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --conf-dir docs --doctree-dir build/doctrees . build/docs
	@echo 'the site is in build/docs/index.html'

# The pip that comes with Python 3.11 knows no dependency groups.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[report]' --group dev
	touch $@

$(DOCS_READY): $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --group docs
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis *.egg-info
