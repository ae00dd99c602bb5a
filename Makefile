# Everything sets itself up in .venv. TORCH names the torch to install: any build that pyproject.toml admits,
# for example `make demo TORCH="torch --index-url URL"` for a CUDA build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test lint format clean

help:
	@echo "make demo   the main job on the built-in corpus: prepare, train with 2 workers, evaluate, extract"
	@echo "make test   all tests"
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

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build *.egg-info
