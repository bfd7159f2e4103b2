# Everything runs in .venv, made on first use of what requirements/*.txt locks; edit pyproject.toml or a lock, and the
# next target reinstalls. PYTHON names another interpreter; ARGS is handed to pytest and to the benchmarks.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN_READY := $(VENV)/.run-ready
PROTOC := $(VENV)/protoc
DEV_READY := $(VENV)/.dev-ready
NEWEST := $(VENV)/newest
PYTEST := pytest -n 2
UNIT := not e2e and not medium and not slow and not ray and not server
LOCKED := pip install --quiet --require-hashes
EDITABLE := pip install --quiet --no-deps --no-build-isolation --editable .
EAGERLY := --upgrade --upgrade-strategy eager --editable '.[dev]'
unexport PYTHONDONTWRITEBYTECODE  # tests start hundreds of processes, each of which would compile the sources anew

COMPILED := $(wildcard device_models/compiled/*.[ch])  # a C compiler makes runs faster, and is not needed

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-slow test-deep test-unit test-newest mutants lock lint fmt bench protos protos-check site site-serve clean

define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "pimserve needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	echo "Name another interpreter: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1; }
@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
endef

$(RUN_READY): pyproject.toml setup.py requirements/build.txt requirements/run.txt $(COMPILED)
	$(make_venv)
	$(BIN)/$(LOCKED) -r requirements/build.txt -r requirements/run.txt
	$(BIN)/$(EDITABLE)
	@touch $@

$(DEV_READY): pyproject.toml setup.py requirements/dev.txt $(COMPILED)
	$(make_venv)
	$(BIN)/$(LOCKED) -r requirements/dev.txt
	$(BIN)/$(EDITABLE)
	@touch $(RUN_READY) $@

$(PROTOC)/.ready: requirements/protos.txt
	$(make_venv)
	@test -x $(PROTOC)/bin/pip || $(PYTHON) -m venv $(PROTOC)
	$(PROTOC)/bin/$(LOCKED) -r $<
	@touch $@

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN_READY) ## simulate Mixtral-8x7B on Duplex devices
	$(BIN)/pimserve run examples/mixtral_duplex.yaml

test: $(DEV_READY) ## the tests, but for the slow ones
	$(BIN)/$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(DEV_READY) ## the slow ones: validation in full, long runs, killed processes, browsers
	@# What the tests of a file share takes long to make. A quarter of the time they wait for processes, Ray and browsers.
	$(BIN)/$(PYTEST) -n 3 --dist loadfile -m "slow and not deep" $(ARGS)

test-deep: $(DEV_READY) ## all of them, and property tests try all examples that they name: for a release, or a new engine
	PIMSERVE_EXAMPLES=1 $(BIN)/$(PYTEST) $(ARGS)

test-unit: $(DEV_READY) ## those of make test that are quick, not end to end, and need neither Ray nor servers
	$(BIN)/$(PYTEST) -m "$(UNIT)" $(ARGS)

NEWER = import json; print(*("{name}=={version}".format(**entry["metadata"]) for entry in json.load(open("$(VENV)/newest.json"))["install"] \
	if entry["metadata"]["name"] != "pimserve"))

test-newest: $(DEV_READY) ## the same as test-unit with the newest of all that pyproject.toml allows
	@$(BIN)/pip install --quiet --dry-run --report $(VENV)/newest.json $(EAGERLY)
	@newer=$$($(BIN)/python -c '$(NEWER)') && if test -z "$$newer"; then \
		echo "nothing is newer than what is locked, which make test tries"; \
	else \
		echo "newer than what is locked: $$newer"; \
		{ test -x $(NEWEST)/bin/pip || $(PYTHON) -m venv $(NEWEST); } && \
		$(NEWEST)/bin/pip install --quiet $(EAGERLY) && $(NEWEST)/bin/$(PYTEST) -m "$(UNIT)" $(ARGS); \
	fi

N := 60
SEED := 0
mutants: $(DEV_READY) ## do tests notice changes of device_models, loadgen and scheduler? N of them, drawn with SEED
	$(BIN)/python tests/mutants.py -n $(N) --seed $(SEED) $(ARGS)

# One resolution for all: what is installed for a run, or on the nodes of a Ray cluster, is what was tested.
UPGRADE := --upgrade
COMPILE = $(BIN)/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --generate-hashes --strip-extras \
	--no-annotate --custom-compile-command 'make lock'

lock: $(DEV_READY) ## renew requirements/*.txt; with UPGRADE= only what pyproject.toml demands
	$(COMPILE) pyproject.toml --extra dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/run.txt
	$(COMPILE) pyproject.toml requirements/ray.in -c requirements/dev.txt -o requirements/ray.txt
	$(COMPILE) requirements/build.in -c requirements/dev.txt -o requirements/build.txt
	$(COMPILE) requirements/protos.in -o requirements/protos.txt

lint: $(DEV_READY) ## style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code

protos: $(PROTOC)/.ready $(RUN_READY) ## generate Python from the .proto files, and that of summaries from their schema
	$(BIN)/python protos/summary_proto.py
	$(PROTOC)/bin/python protos/generate.py

protos-check: $(PROTOC)/.ready $(DEV_READY) ## is the generated code as committed, and the contract unbroken
	$(PROTOC)/bin/python protos/generate.py --check
	cd protos && ../$(BIN)/buf breaking --against baseline.binpb

fmt: $(DEV_READY) ## mend what the linter and the formatter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(DEV_READY) ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

site-serve: $(DEV_READY) ## the same on http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(RUN_READY) ## speed of the simulator itself
	$(BIN)/python benchmarks/run.py $(ARGS)

clean: ## remove all that make made, but for results/
	rm -f device_models/compiled/*.so
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(wildcard benchmarks cluster device_models loadgen scheduler src tests) -name __pycache__ -prune -exec rm -rf {} +
