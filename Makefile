# Everything that people and CI do here. Needs make and Python 3.11; what is fetched goes to .venv.

PYTHON ?= python3.11
# More than the cores of a small machine: tests wait more than they compute.
JOBS ?= 3
BIN := .venv/bin
SDK := worker_sdk/python
PROTOS := $(sort $(wildcard protos/romancy/v1/*.proto))
SERVICES := $(filter %_service.proto,$(PROTOS))
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo dev test check protos bench budget bench-peers lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## make .venv from the lock file; quick when nothing changed

.venv/ready: requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: setup ## the order saga, crashes included
	$(BIN)/python -m examples.demo

dev: setup ## the service on a SQLite file, for this machine only
	$(BIN)/romancy-service dev

test: setup ## all tests, on SQLite and on a real Postgres
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

bench: setup ## everything that is measured; writes bench.json and a line of docs/performance.md
	$(BIN)/python -m tests.bench --keep

budget: setup ## what an order costs, against what is recorded; RECORD=--record records it
	$(BIN)/python -m tests.bench.budget $(RECORD)

# They live in .peers, apart from what we depend on; OPTIONS="--help" has the options.
bench-peers: setup ## the same order saga on ours and on other systems, in turns; writes bench-peers.json
	$(BIN)/python -m tests.bench.peers $(OPTIONS)

check: setup ## format, lint, types, imports, protos, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(MAKE) --no-print-directory protos OUT="$$fresh" && \
	diff -r -x __init__.py -x __pycache__ "$$fresh/romancy/v1" $(SDK)/romancy/v1 || \
	{ echo "generated code is not what the protos say: run make protos"; exit 1; }

OUT ?= $(SDK)
protos: setup ## generate the code of the contract
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(OUT) --plugin=$(BIN)/protoc-gen-mypy \
	    --mypy_out=quiet:$(OUT) $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --grpc_python_out=$(OUT) --plugin=$(BIN)/protoc-gen-mypy_grpc \
	    --mypy_grpc_out=quiet:$(OUT) $(SERVICES)

# The newest versions that fit together; then read what changed, and run everything.
LOCK := CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras \
    --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host
PEERS := tests/bench/peers
lock: setup ## write the lock files anew
	$(LOCK) --extra service --build-deps-for wheel --output-file requirements.txt pyproject.toml
	$(LOCK) --extra service --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
	$(LOCK) --output-file $(PEERS)/requirements.txt $(PEERS)/requirements.in

clean: ## remove what was made here
	rm -rf .venv .peers .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
