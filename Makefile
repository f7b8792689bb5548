# Needs Python 3.11 or later, with its venv module, and a C compiler. `make help` lists the targets.
# Without a GPU on Linux: make ... TORCH_INDEX=URL, the index of PyTorch's builds for CPUs, spares gigabytes.
PYTHON ?= python3
BIN := .venv/bin
TRACKERS := $(patsubst %,plugins/%/pyproject.toml,mlflow tensorboard trackio)
UNSLOTH := plugins/unsloth/pyproject.toml
ENVIRONMENTS := $(patsubst %,plugins/%/pyproject.toml,openenv verifiers)
TESTED := compat/pyproject.toml $(filter-out $(TRACKERS) $(UNSLOTH) $(ENVIRONMENTS),$(wildcard plugins/*/pyproject.toml))
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONUNBUFFERED = 1
# An index that has the wanted build of torch, one without CUDA say; the default is pip's own.
TORCH_INDEX ?=
export TORCH_INDEX
LOCK := locks/all.txt
# Versions are those of the lock, also of what builds our own distributions.
PIP := $(BIN)/python -m pip install -qq --constraint $(LOCK) --no-build-isolation

.DEFAULT_GOAL := help
.PHONY: help quickstart test slow trackers judges board pictures environments client doors vllm ray faults ranks contract lint types check docs models exports bench examples wheels release lock oldest newest clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: .venv/run.stamp ## train a small model on the yes / no / maybe task; ART_STEPS=2 for a short run
	$(BIN)/python examples/yes_no_maybe.py

test: .venv/dev.stamp ## all tests, with 100 % branch coverage of art_core
	$(BIN)/nox -s test

slow: .venv/dev.stamp ## the tests that `make test` leaves out since they take long
	$(BIN)/nox -s slow

trackers: .venv/trackers.stamp ## the sinks for MLflow, TensorBoard and Trackio, on the real libraries
	$(BIN)/nox -s trackers

judges: .venv/judges.stamp ## judges of other providers, through the real litellm
	$(BIN)/nox -s judges

environments: .venv/dev.stamp ## environments of other packages (OpenEnv, verifiers, MCP), each with its own lock and environment
	$(BIN)/nox -s environments

board: .venv/dev.stamp ## the board in the system's Chromium (chromium or chromium-headless-shell, or CHROMIUM)
	$(BIN)/nox -s board

pictures: board ## the pictures of docs/board.md, of a run that is trained for them
	.nox/board/tmp/board/bin/python docs/board.py

vllm: .venv/dev.stamp ## install vLLM into the cache of engines (3.5 GB) and run the tests that need it
	$(BIN)/nox -s vllm

ray: .venv/dev.stamp ## train on a Ray cluster of three nodes on this machine; nodes are killed
	$(BIN)/nox -s ray

client: .venv/dev.stamp ## train on art serve with the published client of ART, and with a recipe of Tinker's cookbook
	$(BIN)/nox -s client

doors: .venv/dev.stamp ## ask an endpoint through the clients that agents bring, and write docs/doors.md
	$(BIN)/nox -s doors

faults: .venv/dev.stamp ## kills, crashes and clocks in full numbers: 1,000 kill -9
	$(BIN)/nox -s faults

ranks: .venv/dev.stamp ## training on two and four ranks, their deaths and their checkpoints
	$(BIN)/python -m pytest -m ranks plugins/local/tests/distributed

contract: .venv/dev.stamp ## what each backend does, tested and written into docs/backends.md
	$(BIN)/nox -s contract

lint: .venv/dev.stamp ## ruff, import contracts, spelling, plain English, weightless plugins
	$(BIN)/nox -s lint

types: .venv/dev.stamp ## mypy, strict
	$(BIN)/nox -s types

check: .venv/dev.stamp ## lint and types
	$(BIN)/nox -s lint types

docs: .venv/dev.stamp ## write the metric table and build the site, strictly
	$(BIN)/nox -s docs

models: .venv/dev.stamp ## what the local backend does with tiny models of many architectures, written into docs/models.md
	$(BIN)/nox -s models

exports: .venv/dev.stamp ## load exported weights in peft, transformers, vLLM and llama.cpp (built from source, 20 minutes)
	$(BIN)/nox -s exports

bench: .venv/dev.stamp ## run the benchmarks behind the claims about speed
	$(BIN)/nox -s bench

examples: .venv/dev.stamp ## run the examples that have a figure and draw the figures again
	$(BIN)/nox -s examples

wheels: .venv/dev.stamp ## build the distributions and use their wheels in a clean environment
	$(BIN)/nox -s wheels example

release: .venv/dev.stamp ## check versions, changelog and built distributions for PyPI; VERSION=X.Y.Z writes a version first
	$(if $(VERSION),$(BIN)/python locks/release.py prepare $(VERSION))
	$(BIN)/python locks/release.py check $(if $(TAG),--tag $(TAG))
	$(BIN)/nox -s wheels example
	$(BIN)/python locks/release.py artefacts

lock: .venv/dev.stamp ## pin everything that make installs; UPGRADE=1 takes the newest versions
	$(BIN)/nox -s lock $(if $(UPGRADE),-- --upgrade)

oldest: .venv/dev.stamp ## all tests with the lowest versions that our distributions promise
	$(BIN)/nox -s oldest

newest: .venv/dev.stamp ## all tests with the newest versions; failures grouped by package
	$(BIN)/nox -s newest

clean: ## remove what was built; runs in .art stay
	rm -rf .venv .nox dist site .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/torch.stamp: locks/all.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo 'Installing torch into .venv; this takes a minute or two.'
	$(BIN)/python plugins/local/art_local/vllm/packages.py --constraint $(LOCK) $(if $(TORCH_INDEX),--index $(TORCH_INDEX))
	$(PIP) hatchling editables
	@touch $@

.venv/run.stamp: .venv/torch.stamp pyproject.toml plugins/local/pyproject.toml
	@echo 'Installing art-core and the local backend.'
	$(PIP) --editable '.[openai,endpoint,plot]' --editable ./plugins/local
	@touch $@

.venv/dev.stamp: .venv/run.stamp $(TESTED) $(UNSLOTH) locks/unsloth.txt
	@echo 'Installing what tests and checks need.'
	$(PIP) --editable '.[dev,openai,endpoint,plot]' $(patsubst %/pyproject.toml,--editable ./%,$(TESTED))
# Alone, since what Unsloth asks for holds transformers back and takes gigabytes; on a CPU it runs without.
	$(PIP) --no-deps --editable ./plugins/unsloth --requirement locks/unsloth.txt
	@touch $@

.venv/trackers.stamp: .venv/dev.stamp $(TRACKERS)
	@echo 'Installing the trackers.'
	$(PIP) $(patsubst %/pyproject.toml,--editable ./%,$(TRACKERS))
	@touch $@

.venv/judges.stamp: .venv/dev.stamp pyproject.toml
	@echo 'Installing litellm.'
	$(PIP) --editable '.[judges]'
	@touch $@
