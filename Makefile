# Needs Python 3.11 or later, with its venv module, and a C compiler. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
TRACKERS := $(patsubst %,plugins/%/pyproject.toml,mlflow tensorboard trackio)
UNSLOTH := plugins/unsloth/pyproject.toml
TESTED := $(filter-out $(TRACKERS) $(UNSLOTH),$(wildcard plugins/*/pyproject.toml))
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test trackers vllm faults contract lint types check docs bench wheels clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: .venv/run.stamp ## train a small model on the yes / no / maybe task; ART_STEPS=2 for a short run
	$(BIN)/python examples/yes_no_maybe.py

test: .venv/dev.stamp ## all tests, with 100 % branch coverage of art_core
	$(BIN)/nox -s test

trackers: .venv/trackers.stamp ## the sinks for MLflow, TensorBoard and Trackio, on the real libraries
	$(BIN)/nox -s trackers

vllm: .venv/dev.stamp ## install vLLM into the cache of engines (3.5 GB) and run the tests that need it
	$(BIN)/nox -s vllm

faults: .venv/dev.stamp ## kills, crashes and clocks in full numbers: 1,000 kill -9
	$(BIN)/nox -s faults

contract: .venv/dev.stamp ## what each backend does, tested and written into docs/backends.md
	$(BIN)/nox -s contract

lint: .venv/dev.stamp ## ruff, import contracts, spelling, weightless plugins
	$(BIN)/nox -s lint

types: .venv/dev.stamp ## mypy, strict
	$(BIN)/nox -s types

check: .venv/dev.stamp ## lint and types
	$(BIN)/nox -s lint types

docs: .venv/dev.stamp ## write the metric table and build the site, strictly
	$(BIN)/nox -s docs

bench: .venv/dev.stamp ## run the benchmarks behind the claims about speed
	$(BIN)/nox -s bench

wheels: .venv/dev.stamp ## build the distributions and use their wheels in a clean environment
	$(BIN)/nox -s wheels example

clean: ## remove what was built; runs in .art stay
	rm -rf .venv .nox dist site .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/torch.stamp: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@echo 'Installing torch into .venv; this takes a minute or two.'
	$(BIN)/python -m pip install -qq --requirement constraints.txt
	@touch $@

.venv/run.stamp: .venv/torch.stamp pyproject.toml plugins/local/pyproject.toml
	@echo 'Installing art-core and the local backend.'
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[openai,endpoint,plot]' --editable ./plugins/local
	@touch $@

.venv/dev.stamp: .venv/run.stamp $(TESTED) $(UNSLOTH)
	@echo 'Installing what tests and checks need.'
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev,openai,endpoint,plot]' $(patsubst %/pyproject.toml,--editable ./%,$(TESTED))
# Alone, since what Unsloth asks for holds transformers back and takes gigabytes; on a CPU it runs without.
	$(BIN)/python -m pip install -qq --no-deps --editable ./plugins/unsloth 'unsloth>=2026.9' 'unsloth_zoo>=2026.9'
	@touch $@

.venv/trackers.stamp: .venv/dev.stamp $(TRACKERS)
	@echo 'Installing the trackers.'
	$(BIN)/python -m pip install -qq --constraint constraints.txt $(patsubst %/pyproject.toml,--editable ./%,$(TRACKERS))
	@touch $@
