# Everything sets itself up in .venv. TORCH names the torch to install: any build that pyproject.toml admits,
# for example `make demo TORCH="torch --index-url URL"` for a CUDA build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv/.peers

.PHONY: help demo test benchmark peers test-cluster chaos leaks scale up down lint format clean

help:
	@echo "make demo   the main job on the built-in corpus: prepare, train with 2 workers, evaluate, extract"
	@echo "make test   all tests"
	@echo "make benchmark  how fast everything is, beside the hand-made loop and the machine's limit; DATA=dataset (5 minutes)"
	@echo "make peers  what you would pick instead, beside both presets on a dataset of yours; DATA=dataset"
	@echo "make test-cluster  jobs on a cluster of a head and three nodes on this machine, and on an autoscaler (12 minutes)"
	@echo "make chaos  trainings on such a cluster whose workers, nodes and drivers are killed; N=20 of them"
	@echo "make leaks  whether sweeps of hundreds of trials leave anything behind in Ray (6 minutes)"
	@echo "make scale  prepare on 250,000 and 1,000,000 texts: memory, speed, 1 node and 3 (5 minutes)"
	@echo "make up     the cluster of cluster.yaml, once its values are set; make down ends it"
	@echo "make lint   ruff and mypy"
	@echo "make format ruff, in place"
	@echo "make clean  remove .venv and caches; runs/ stays"

# torch first: with it installed, the project's own range asks for nothing more.
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq $(TORCH)
	$(BIN)/pip install -qq ".[dev]"
	@rm -rf build *.egg-info
	@touch $@

demo: $(READY)
	$(BIN)/python -m jobs demo

# Tests that start Ray mostly wait. All others run beside them, and what they say is shown after.
test: $(READY)
	@$(BIN)/python -m pytest -m "not ray" > .venv/others.log 2>&1 & others=$$!; trap "kill $$others" INT TERM; \
	$(BIN)/python -m pytest -m ray; ray=$$?; \
	wait $$others; others=$$?; cat .venv/others.log; exit $$((ray | others))

benchmark: $(READY)
	$(BIN)/python -m jobs benchmark $(if $(DATA),--data $(DATA))

$(PEERS): $(READY)
	$(BIN)/pip install -qq ".[peers]"
	@rm -rf build *.egg-info
	@touch $@

peers: $(PEERS)
	$(BIN)/python -m jobs benchmark --peers $(if $(DATA),--data $(DATA))

test-cluster: $(READY)
	TANDEM_CLUSTER=1 $(BIN)/python -m pytest tests/test_cluster.py tests/test_autoscaler.py

chaos: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/chaos.py --runs $(or $(N),20)

leaks: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/leaks.py --one 250 --two 32

scale: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/scale.py --texts 250000 1000000

up: $(READY)
	@! grep -nE '^[^#]*[-/]SET' cluster.yaml || { echo "cluster.yaml: put values of yours in these lines first" >&2; exit 2; }
	$(BIN)/ray up --yes cluster.yaml

down: $(READY)
	$(BIN)/ray down --yes cluster.yaml

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build *.egg-info
