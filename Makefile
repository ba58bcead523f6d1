# Two commands do everything on a fresh machine: `make reproduce` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/dlmbench
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup reproduce reproduce-full tables two-threads screenshots test tests test-all lint types coverage house docs bench bench-gpu gpu-proof train-nano

setup: $(VENV)/.runtime

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dlmbench needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(INSTALL) -e '.[dev]'
	touch $@

reproduce: $(VENV)/.runtime
	$(RUN) sweep recipes/reproduce.yaml

reproduce-full: $(VENV)/.runtime
	$(RUN) sweep recipes/reproduce-full.yaml

# The other large tables of results/.
tables: $(VENV)/.runtime
	$(RUN) sweep recipes/simsd-nano2.yaml
	$(RUN) sweep recipes/mrp-nano2.yaml
	$(RUN) sweep recipes/trained-nano2.yaml
	$(RUN) sweep recipes/full-attention.yaml

# A recipe with one thread and with two, as a stand-in for two machines: its verdicts must be the same.
RECIPE := recipes/reproduce.yaml
THREADS := results/two-threads
two-threads: $(VENV)/.runtime
	OMP_NUM_THREADS=1 $(RUN) sweep $(RECIPE) --out $(THREADS)/one
	OMP_NUM_THREADS=2 $(RUN) sweep $(RECIPE) --out $(THREADS)/two
	$(BIN)/python tests/same_verdicts.py $(THREADS)/one $(THREADS)/two

screenshots: reproduce
	$(BIN)/python tests/e2e/screenshots.py results/reproduce results/screenshots

# A process a core, as its tests are mostly small networks that gain little from threads.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

test: lint
	$(MAKE) --no-print-directory -j2 types tests

tests: $(VENV)/.dev
	$(PYTEST)

# Types, checked; the first time takes a minute.
types: $(VENV)/.dev
	$(BIN)/python -m mypy

# How much of the package the tests reach.
coverage: $(VENV)/.dev
	$(PYTEST) --cov=dlmbench --cov-report=term

test-all: $(VENV)/.dev
	$(PYTEST) -m 'not cuda'

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What should stay small, counted, with its limits (tests/house.py); -v says where.
house: $(VENV)/.dev
	$(BIN)/python tests/house.py

$(VENV)/.docs: $(VENV)/.runtime
	$(INSTALL) -e '.[docs]'
	touch $@

# The pages of docs/ as a site in site/.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --clean --config-file docs/site/mkdocs.yml

bench: $(VENV)/.runtime
	$(RUN) bench --batch-size 1,4,16,32 --contexts 128,512,2048 --out results/bench
	$(RUN) bench --decoders --batch-size 16 --repeats 3 --out results/bench

# On a machine whose own Python has torch with CUDA (and transformers, safetensors, numpy, typer, rich, pyyaml): no .venv.
bench-gpu:
	$(PYTHON) -m dlmbench bench --device cuda --shape nano --batch-size 1,16,128 --repeats 3 --no-plain --out results/bench
	$(PYTHON) -m dlmbench bench --device cuda --shape sdar-4b --block-length 4 --batch-size 1,32,128 --repeats 3 \
		--prompt-tokens 256 --contexts 256,1024 --no-plain --out results/bench
	$(PYTHON) -m dlmbench bench --device cuda --shape sdar-1.7b --block-length 4 --batch-size 1,32 --repeats 3 \
		--prompt-tokens 256 --no-plain --out results/bench
	$(PYTHON) -m dlmbench bench --device cuda --shape llada-8b --block-length 32 --lengths 256,1024 --out results/bench
	$(PYTHON) -m dlmbench bench --device cuda --shape dream-7b --block-length 32 --lengths 256,1024 --out results/bench
	$(PYTHON) -m dlmbench bench --device cuda --shape sdar-8b --block-length 4 --batch-size 1 --repeats 3 \
		--prompt-tokens 1024 --contexts 1024,4096 --out results/bench

# Everything to be proved on a GPU, in one budget of seconds (docs/on-a-gpu.md). DEVICE=cpu SHAPES=tiny rehearses it.
# Where there is no .venv, the machine's own Python runs it, as above.
DEVICE := cuda
SHAPES := full
BUDGET := 375
OUT := proof
PROOF := $(or $(wildcard $(BIN)/python),$(PYTHON))
gpu-proof:
	$(PROOF) -m dlmbench.bench.proof --device $(DEVICE) --shapes $(SHAPES) --budget $(BUDGET) --out $(OUT) \
		$(if $(ONLY),--only $(ONLY)) $(if $(SKIP),--skip $(SKIP)) $(if $(FRESH),--fresh)

# The shipped models, from nothing: each goes on from its checkpoint and is left alone when it is done.
RUNS := training-runs
NANO := nano-ar nano nano-swaps nano2-first nano2-second nano2-third nano2-fourth nano2-fifth nano2 nano2-llada-first nano2-llada nano2-ar nano2-draft-first nano2-draft nano2-mrp nano2-adjust nano2-policy nano2-rcd-ref nano2-rcd nano2-mrp-remask nano2-seqd
train-nano: $(VENV)/.dev
	set -e; for name in $(NANO); do $(RUN) train recipes/train-$$name.yaml --out $(RUNS)/$$name; done
