# SPDX-License-Identifier: Apache-2.0
# make demo and make test do all their set-up; both are safe to run again.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
STEP := scripts/step

.PHONY: help setup system-packages demo test lint unit integration test-full test-long test-boot bench docs requirements wheel clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 20

setup:  ## .venv with the pinned requirements and this project
	@$(STEP) "set-up of .venv" scripts/setup

system-packages:  ## the system packages that are missing, by apt-get
	@$(STEP) "system packages" scripts/system-packages

demo: system-packages setup  ## build, verify, publish to three local sites, rotate: the main job in one command
	@$(STEP) "demo" scripts/demo

test: system-packages setup lint unit integration  ## what .ci/run runs: fast tests, then real builds, boots and services

lint: setup  ## ruff, mypy, shellcheck, dib-lint, zizmor, check-jsonschema
	@$(STEP) "ruff" .venv/bin/ruff check .
	@$(STEP) "ruff format" .venv/bin/ruff format --check --quiet .
	@$(STEP) "mypy" .venv/bin/mypy
	@$(STEP) "shellcheck" scripts/shellcheck
	@$(STEP) "dib-lint" scripts/dib-lint
	@$(STEP) "zizmor" .venv/bin/zizmor --offline --quiet .github/workflows
	@$(STEP) "workflows' schema" .venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

unit: setup  ## tests without network and subprocesses
	@$(STEP) "unit tests" $(PYTHON) -m pytest -q -n auto tests/unit

integration: system-packages setup  ## tests with the real diskimage-builder, QEMU, Keystone and Glance
	@$(STEP) "integration tests" $(PYTHON) -m pytest -v -n 2 --dist loadfile --durations=25 tests/integration tests/contract -m "not long"

test-full: test test-long test-boot  ## test, and what takes too long for it

test-long: system-packages setup  ## the long tests, but those of test-boot
	@$(STEP) "unit tests with other examples" $(PYTHON) -m pytest -q -n auto tests/unit --hypothesis-profile=searching
	@$(STEP) "long tests" $(PYTHON) -m pytest -v --durations=10 tests/integration tests/contract -m long \
	    --ignore=tests/integration/nodes/test_boot.py

test-boot: system-packages setup  ## an experiment on machines that boot the image; takes root, and more than half an hour
	@$(STEP) "machines that boot" $(PYTHON) -m pytest -v --durations=10 tests/integration/nodes/test_boot.py

bench: system-packages setup  ## the figures of docs/performance.md, both sides in one run
	@$(STEP) "benchmarks" $(PYTHON) -m tests.benchmarks

docs: setup  ## docs/settings.md from the table of settings
	@$(PYTHON) -m image_builder.settings > docs/settings.md

requirements: setup  ## resolve the pinned requirements anew
	@.venv/bin/uv pip compile --quiet --universal --upgrade --extra waggle --python-version 3.10 --no-header --no-emit-index-url \
	    --no-annotate requirements/dev.in setup.cfg --output-file requirements/dev.txt

wheel: setup  ## a wheel in dist/
	@$(PYTHON) -m build --wheel --no-isolation --outdir dist .

clean:  ## remove what was built here, but no images
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache dist *.egg-info
