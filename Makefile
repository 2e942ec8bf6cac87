# Everything runs in .venv, made from scratch with nothing but Python 3.11 or newer.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo check style types wheel-types fast test test-engine lint docs bench soak train results scorers clean

demo: $(READY)
	$(BIN)/trim-graph demo

# Under 90 seconds on two idle cores: what is worth running before each commit. Types are checked beside the tests,
# because mypy uses one core and takes a minute where it has no cache.
check: style
	$(MAKE) --no-print-directory --jobs 2 types fast

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(READY)
	$(BIN)/mypy

fast: $(READY)
	$(BIN)/pytest -q -n 2 --dist load $(FAST)

# Of the tests, those of routing, budgets, states, steps and settings that take little.
FAST := tests/nodes tests/policies tests/config tests/storage/test_checkpoint.py \
	$(addprefix tests/routing/test_,$(addsuffix .py,router drafts loops fallbacks)) \
	$(addprefix tests/budget/test_,$(addsuffix .py,limits usage)) \
	$(addprefix tests/agents/test_,$(addsuffix .py,middleware rendering turn)) \
	$(addprefix tests/adapters/test_,$(addsuffix .py,base usage)) \
	$(addprefix tests/test_,$(addsuffix .py,chat_model conversation embedding graph runtime segmentation \
	settings streaming structure summary testing))

# In two processes; by folder, so that each server that tests need is started once.
test: $(READY)
	$(BIN)/pytest -q -n 2 --dist loadscope --no-loadscope-reorder

# vLLM in this process; about 5 GB of memory. make test covers all else.
test-engine:
	.ci/vllm
	.venv-vllm/bin/python -m pytest -q tests/engine

lint: style wheel-types

wheel-types: $(READY)
	.ci/typecheck $(BIN)/python

# The documentation site, in .site; a broken link or reference is an error. "mkdocs serve -f examples/site/mkdocs.yml"
# shows it while pages are written.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet -f examples/site/mkdocs.yml

# Against real vLLM servers and engines on the example models; about an hour on two idle cores.
bench: $(READY)
	.ci/vllm
	$(BIN)/python -m tests.benchmarks.overhead
	$(BIN)/python -m tests.benchmarks.state_size
	$(BIN)/python -m tests.benchmarks.http
	$(BIN)/python -m tests.benchmarks.speed graph
	$(BIN)/python -m tests.benchmarks.speed paced
	$(BIN)/python -m tests.benchmarks.speed workers
	TRIM_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m tests.benchmarks.speed servers
	TRIM_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m tests.benchmarks.speed crowd
	TRIM_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m tests.benchmarks.speed batching
	.venv-vllm/bin/python -m tests.benchmarks.speed engines
	$(BIN)/python -m tests.benchmarks.speed report

# Too long for every change: thousands of killed processes, faults under load, half an hour of steady load.
soak: $(READY)
	.ci/vllm
	TRIM_KILL_POINTS=2000 $(BIN)/pytest -q -s tests/test_killed_runs.py tests/postgres/test_killed_runs.py
	$(BIN)/python -m tests.soak serve
	TRIM_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m tests.soak faults
	TRIM_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m tests.soak steady

train: $(READY)
	$(BIN)/python -m trim_graph.examples.arithmetic.training.train

# What it records stays in .results; an interrupted run resumes there.
results: $(READY)
	$(BIN)/python -m trim_graph.examples.arithmetic.study.results .results

# Scorers made of labels, learned policies with a moved threshold, and what a scorer's passes cost, against real vLLM
# servers. Resumes in .results too.
scorers: $(READY)
	$(BIN)/python -m trim_graph.examples.arithmetic.study.own_scorers .results
	$(BIN)/python -m trim_graph.examples.arithmetic.study.one_checkpoint .results -n 600 --thresholds 20
	.ci/vllm
	TRIM_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m tests.benchmarks.scorer_passes \
		--json .results/scorer_passes.json

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-vllm build dist *.egg-info
