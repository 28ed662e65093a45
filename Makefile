# `make help` lists the verbs. Everything that is built lies outside the work tree, in $(CACHE), and is reused.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup lint types unit unit-data unit-others trainer trainer-gangs trainer-parts built cluster-test e2e test crds images quickstart quickstart-data cluster-up cluster-down cluster-status clean bench-trainer bench-quality bench-gpu gpu bench-plan bench-data bench-operator soak

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator
SIZE ?= node
NAMESPACE ?= default
PYTHON ?= python3
UV := $(or $(shell command -v uv),$(CACHE)/uv/bin/uv)
RUN := .venv/bin/python
export PATH := $(CURDIR)/.venv/bin:$(PATH):$(CACHE)/uv/bin
# Thousands of processes start from the same sources: the first of them compiles for all, also where the user's shell says no.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}'

# ---- environment

$(CACHE)/uv/bin/uv:
	$(PYTHON) -m venv $(CACHE)/uv && $(CACHE)/uv/bin/pip install --quiet uv

# The command line and the local cluster: no torch. `--inexact` keeps what `make setup` put there. Bytecode is compiled once,
# since every training process would else compile torch for itself where Python may not write it.
.venv/.cli: pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen --inexact --quiet --compile-bytecode --extra cli --python $(PYTHON)
	@touch $@

# Twenty thousand files take a minute to compile: made once for a lock file and a Python, then linked into every checkout.
.venv/.all: pyproject.toml uv.lock | $(UV)
	@made=$(CACHE)/environment/$$({ $(PYTHON) -c 'import sys; print(sys.version, sys.base_prefix)'; cat uv.lock; } | sha256sum | cut -c-16); new=$$made.$$$$; \
	if [ ! -e $$made ]; then \
		rm -rf $(CACHE)/environment; \
		$(UV) venv --quiet --relocatable --python $(PYTHON) $$new; \
		UV_PROJECT_ENVIRONMENT=$$new $(UV) sync --frozen --quiet --compile-bytecode --all-extras --no-install-project --python $(PYTHON); \
		mv -T $$new $$made; \
	fi; \
	if [ ! -e .venv/bin/python ]; then rm -rf .venv; cp -al $$made .venv || { rm -rf .venv; cp -a $$made .venv; }; fi
	$(UV) sync --frozen --quiet --compile-bytecode --all-extras --python $(PYTHON)
	@touch .venv/.cli $@

setup: .venv/.all ## Make .venv with everything that tests need (torch too)

# ---- the two commands

quickstart: .venv/.cli ## From nothing to a published adapter on this machine (CLUSTER=current: on your cluster)
	@$(RUN) -m examples.quickstart.run

# Side by side, each one's output in one piece: the tests with an API server and those with pods wait most of their time, the
# others compute, and give way. What takes minutes once is built before them: no test waits for it. Five at once: the last
# follows the first to end, and the longest ones end side by side, so that no core idles.
test: .venv/.all ## Everything that this machine can run: lint, types, unit, trainer, cluster, e2e
	@$(MAKE) --no-print-directory --keep-going --jobs --output-sync=target lint types built
	@$(MAKE) --no-print-directory --keep-going --jobs=5 --output-sync=target \
		e2e cluster-test trainer-gangs trainer-parts unit-data unit-others

# ---- parts of them

quickstart-data: .venv/.cli ## Put the quickstart's base model and data on a claim: NAMESPACE=x
	@$(RUN) -m examples.quickstart.run data --namespace $(NAMESPACE)

lint: .venv/.all ## ruff, import contracts, words of documentation and messages, generated files
	ruff check .
	ruff format --check .
	lint-imports
	$(RUN) tests/plain_words.py
	for generator in crdgen valuesgen docgen; do $(RUN) -m finetune_api.$$generator --check; done

types: .venv/.all ## mypy --strict
	mypy --cache-dir $(CACHE)/mypy

unit: .venv/.all ## Tests that need no cluster, under 60 s
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target unit-data unit-others

# Two processes that take about as long: what needs torch and what reads files of data; the rest.
UNIT_DATA := $(addprefix tests/unit/,data fixes formats proof readers train)

unit-data: .venv/.all
	nice $(RUN) -m pytest $(UNIT_DATA)

unit-others: .venv/.all
	nice $(RUN) -m pytest tests/unit $(addprefix --ignore=,$(UNIT_DATA))

built: .venv/.cli
	@$(RUN) -m localcluster build --size control --kwok

trainer: .venv/.all ## Training gangs as processes on this machine
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target trainer-gangs trainer-parts

# Two processes that take about as long: whole stages and gangs; engines, and the parts that have folders of their own.
TRAINER_GANGS := $(filter-out %/test_engines.py,$(wildcard tests/trainer/test_*.py)) tests/trainer/evaluate/test_sharded.py

trainer-gangs: .venv/.all
	nice -n 5 $(RUN) -m pytest $(TRAINER_GANGS)

trainer-parts: .venv/.all
	nice -n 5 $(RUN) -m pytest tests/trainer $(addprefix --ignore=,$(TRAINER_GANGS))

cluster-test: .venv/.all ## The operator against a real API server and controllers
	@$(MAKE) --no-print-directory built
	$(RUN) -m pytest tests/cluster

e2e: .venv/.all ## Real pods on a node
	$(RUN) -m pytest tests/e2e

crds: .venv/.all ## Write what is made from the models: CRD, chart schema, API reference
	for generator in crdgen valuesgen docgen; do $(RUN) -m finetune_api.$$generator; done

images: .venv/.cli ## Build both images and push them to the local registry
	$(RUN) -m localcluster image build --target operator --push
	$(RUN) -m localcluster image build --target trainer --push

cluster-up: .venv/.cli ## A real Kubernetes on this machine: SIZE=api|control|node
	@$(RUN) -m localcluster up --size $(SIZE) $(if $(NAME),--name $(NAME))

cluster-down: .venv/.cli ## Stop it
	@$(RUN) -m localcluster down --name $(or $(NAME),$(SIZE))

cluster-status: .venv/.cli ## What runs
	@$(RUN) -m localcluster status

# ---- measurements; rivals live in an environment of their own

BENCH := $(CACHE)/bench
BENCH_RUN := PYTHONPATH=$(CURDIR) $(BENCH)/bin/python -m

$(BENCH)/.made: pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=$(BENCH) $(UV) sync --frozen --quiet --no-default-groups --group bench --group dev --extra trainer --python $(PYTHON)
	@touch $@

bench-trainer: $(BENCH)/.made ## The trainer against TRL and transformers.Trainer: DATA=rows.jsonl METHOD=full|lora
	$(BENCH_RUN) benchmarks.trainer.run $(if $(DATA),--data $(DATA)) --method $(or $(METHOD),full)

bench-quality: $(BENCH)/.made ## What tuning brings on held-out rows, beside transformers.Trainer: DATA=rows.jsonl
	$(BENCH_RUN) benchmarks.trainer.quality $(if $(DATA),--data $(DATA))

bench-gpu: $(BENCH)/.made ## Throughput on one GPU: CASE=lora-8b|qlora-8b|full-3b RIVAL=trl|trl-tuned|none
	$(BENCH_RUN) benchmarks.gpu.run --case $(or $(CASE),lora-8b) --rival $(or $(RIVAL),none)

gpu: $(BENCH)/.made ## Everything that only a GPU can show, in nine minutes: MODEL=folder of a pretrained model
	$(BENCH_RUN) benchmarks.gpu.suite --model $(or $(MODEL),$(CACHE)/quickstart/base)

bench-data: .venv/.all ## Checks of data, on GSM8K and a generated file: DATA=folder ROWS=1000000
	$(RUN) -m benchmarks.data.run $(if $(DATA),--data $(DATA)) --rows $(or $(ROWS),1000000)

# The operator with what its image has: kopf imports every Kubernetes client that it finds, 26 MB of them.
$(CACHE)/operator/.made: pyproject.toml uv.lock | $(UV)
	UV_PROJECT_ENVIRONMENT=$(CACHE)/operator $(UV) sync --frozen --quiet --no-default-groups --no-install-project --extra operator --python $(PYTHON)
	@touch $@

bench-operator: .venv/.all $(CACHE)/operator/.made ## The operator against Kubeflow Trainer: ONLY=life,burst,charges,scale,refused,failover LONG=1 PROFILE=1 JOBS=1000
	OPERATOR_PYTHON=$(CACHE)/operator/bin/python $(RUN) -m benchmarks.operator.run $(if $(ONLY),--only $(ONLY)) $(if $(LONG),--long) $(if $(PROFILE),--profile) --jobs $(or $(JOBS),1000)

soak: .venv/.all ## Random faults, and invariants that must hold throughout: MINUTES=30 SEED=1 JOBS=500
	$(RUN) -m benchmarks.operator.soak --minutes $(or $(MINUTES),30) --jobs $(or $(JOBS),500) $(if $(SEED),--seed $(SEED))

bench-plan: $(BENCH)/.made ## Plans against what happens: memory, steps, tokens, time, published claims: ONLY=gpu|memory|published|speed
	$(BENCH_RUN) benchmarks.plan.run $(if $(ONLY),--only $(ONLY))

clean: ## Remove what this folder holds of builds (not the caches)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache benchmarks/out out
