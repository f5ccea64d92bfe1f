# `make demo` and `make test` set everything up by themselves. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
# The engine's package: cpu, as pinned, or cuda, the newest that fits the machine's driver. What is
# installed stays until another is named.
EXTRA ?= $(or $(patsubst $(VENV)/.ready-%,%,$(wildcard $(VENV)/.ready-*)),cpu)
# Where it is set, each of many processes compiles torch, transformers and vLLM again as it imports
# them: half of the time that importing takes.
unexport PYTHONDONTWRITEBYTECODE
# Wheels that lie in a folder (an offline mirror, a CPU build of torch) are used where pip would.
FIND_LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))
export UV_FIND_LINKS := $(FIND_LINKS)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
# Without such a folder, uv takes torch's CPU build from where torch publishes it.
TORCH := $(if $(FIND_LINKS),,--torch-backend cpu)

# What needs the whole machine runs alone: the engine computes with every core, and whole load tests
# measure times. All other tests share the cores, a process for each with a thread for torch.
NEEDS_ALL := tests/engine $(addprefix tests/loadtests/,test_calibration.py test_smoke.py)
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' $(addprefix --ignore ,$(NEEDS_ALL)) \
	-n logical --maxprocesses 4 --dist worksteal
ALONE := $(BIN)/pytest -m 'not slow' $(NEEDS_ALL)

PROTOS := $(addprefix proto/loragate/v1/,inference.proto registry.proto experiments.proto)
OUT := proto

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-ab demo-train demo-adapters serve test test-slow test-clients coverage bench bench-direct \
	bench-frontend bench-gateway bench-swap bench-many-swaps bench-soak bench-starvation bench-registry bench-bombs \
	bench-cli bench-train bench-rivals loadtest structure check fmt generate lock clean

help: ## List the recipes
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready-$(EXTRA) ## Make the virtual environment in .venv

# Another extra's environment makes way: both packages bring the module vllm, and one over the other
# is neither.
$(VENV)/.ready-$(EXTRA): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "loragate needs Python 3.11 or newer; set PYTHON=python3.11"; exit 1; }
	$(if $(filter-out $@,$(wildcard $(VENV)/.ready-*)),rm -rf $(VENV))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
ifeq ($(EXTRA),cpu)
	$(BIN)/uv pip install $(TORCH) -r requirements.txt
	$(BIN)/uv pip install --quiet --no-deps --editable .
else
	$(BIN)/uv pip install --torch-backend auto --editable '.[$(EXTRA),train,dev]'
endif
	@touch $@

demo: setup ## Prepare a model, publish two example adapters, serve, and compare their answers
	$(BIN)/python examples/demo.py

demo-ab: setup ## Compare merged with unmerged serving by an experiment of 500 requests
	$(BIN)/python examples/demo_ab.py $(ARGS)

demo-train: setup ## Raw tickets to an adapter that answers: check, clean, train, evaluate, publish, ask
	$(BIN)/python examples/demo_train.py

demo-adapters: setup ## Train the adapters of `make demo` again
	$(BIN)/loragate model prepare
	$(BIN)/python examples/adapters/make.py

serve: setup ## Serve over HTTP and gRPC
	$(BIN)/loragate serve

test: setup ## Run the tests but the slow ones, with the real engine and model
	$(BIN)/loragate model prepare
	$(SIDE_BY_SIDE)
	$(ALONE)

test-slow: setup ## Run what takes minutes more: long churn, kills by the hundred, two processes
	$(BIN)/loragate model prepare
	$(BIN)/pytest -m slow --timeout 1200

test-clients: setup ## Run real clients, pinned, against a server (ARGS=quick, or their names)
	$(BIN)/python tests/clients/run.py $(ARGS)

coverage: setup ## Run the tests and show which lines of server/, adapters/ and trainer/ they reach
	$(BIN)/loragate model prepare
	$(SIDE_BY_SIDE) --cov --cov-report=
	$(ALONE) --cov --cov-append --cov-report=term:skip-covered

bench: setup ## Measure speed beside stock vLLM (20 minutes; ARGS="--rounds 1 --large" and others)
	$(BIN)/python -m bench.serving $(ARGS)

bench-rivals: setup ## Measure speed beside stock vLLM and llama.cpp (45 minutes; ARGS="--rounds 1")
	$(BIN)/python -m bench.rivals $(ARGS)

bench-direct: setup ## Measure what HTTP and the gateway cost, against the engine alone
	$(BIN)/python -m bench.direct $(ARGS)

bench-clients: setup ## Compare vLLM's own benchmark client with the load tests (8 minutes)
	$(BIN)/python -m bench.clients $(ARGS)

bench-frontend: setup ## Measure what one process carries over HTTP and gRPC, without an engine
	$(BIN)/python -m bench.frontend $(ARGS)

bench-gateway: setup ## Take apart what comes between a client and the engine
	$(BIN)/python -m bench.gateway $(ARGS)

bench-gpu: setup ## Measure 32 and 256 adapters of ranks 16 and 64, beside stock vLLM, on a GPU
	$(BIN)/python -m bench.gpu $(ARGS)

bench-swap: setup ## Measure what others notice of a swap, beside stock vLLM (15 minutes)
	$(BIN)/python -m bench.swap $(ARGS)

bench-many-swaps: setup ## Swap a thousand times under load: failures, tokens, memory (20 minutes)
	$(BIN)/python -m bench.many_swaps $(ARGS)

bench-soak: setup ## An hour of mixed load in which every background task fails, then SIGTERM
	$(BIN)/python -m bench.soak $(ARGS)

bench-starvation: setup ## Show what the fair queue does for a cold adapter beside a hot one
	$(BIN)/python -m bench.starvation $(ARGS)

bench-registry: setup ## Measure what a large registry costs the event loop: changes, /metrics
	$(BIN)/python -m bench.registry_scale $(ARGS)

bench-cli: setup ## Measure the processor time of the command line
	$(BIN)/python -m bench.cli $(ARGS)

bench-bombs: setup ## Measure what one request made to cost much costs the others (10 minutes)
	$(BIN)/python -m bench.bombs $(ARGS)

bench-train: setup ## Measure training beside a plain SFTTrainer
	$(BIN)/python bench/train.py $(ARGS)

loadtest: setup ## Run a load test: make loadtest SCENARIO=steady
	$(BIN)/python -m loadtests run $(SCENARIO) $(ARGS)

structure: ## Count the packages' rooms, levels, arrows, cycles and lines (ARGS="--path FOLDER")
	@$(PYTHON) -m bench.structure $(ARGS)

check: setup ## Check format, lint, types, import arrows, stubs, and that the GPU's packages go together
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory generate OUT=$(VENV)/generated
	@for stub in $(VENV)/generated/loragate/v1/*_pb2*; do \
		cmp "$$stub" "proto/loragate/v1/$$(basename $$stub)" || \
			{ echo "the stubs are stale: run 'make generate'"; exit 1; }; done
	@# Nothing of it is installed here, but it has to go together on a machine with a GPU.
	$(BIN)/uv pip compile --quiet pyproject.toml --extra cuda --extra train --extra dev \
		--no-header --no-annotate --output-file $(VENV)/cuda.txt
	@grep '^vllm==' $(VENV)/cuda.txt

fmt: setup ## Format, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: setup ## Generate the gRPC stubs
	@mkdir -p $(OUT)
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=$(OUT) --pyi_out=$(OUT) \
		--grpc_python_out=$(OUT) $(PROTOS)

lock: setup ## Compile requirements.txt from pyproject.toml
	$(BIN)/uv pip compile --quiet pyproject.toml --extra cpu --extra train --extra dev \
		--no-header --no-annotate --output-file requirements.txt

clean: ## Remove the virtual environment and what tests left
	rm -rf $(VENV) .venv-clients .coverage .pytest_cache .ruff_cache .hypothesis .import_linter_cache
