# Run `make help` for a list of the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# No telemetry.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1

# The first that runs and is supported; the tests run with 3.11.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	"$$name" -c "$(SUPPORTED)" 2>/dev/null && echo "$$name" && break; done)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
UV := uv --quiet

# EXTRAS="server cluster" adds extras of pyproject.toml, which stay until `make clean`.
INSTALLED_EXTRAS := $(shell cat .venv/extras 2>/dev/null)
WANTED_EXTRAS := $(sort $(INSTALLED_EXTRAS) $(EXTRAS))
ifneq ($(WANTED_EXTRAS),$(INSTALLED_EXTRAS))
.PHONY: .venv/installed
endif

.PHONY: help install run experiments data-docs test test-fast test-soak lint flow serve up down status gc lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

.venv/bin/uv: requirements.lock
	@"$(or $(PYTHON),python3)" -c "$(SUPPORTED)" || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed. Install one, or give its path: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x .venv/bin/python || "$(PYTHON)" -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	@touch $@

# Installs a part of pyproject.toml at exactly the pins and hashes of the lock, which has all parts for all platforms. With
# bytecode: TensorFlow imports three times as fast with it.
LOCKED := --constraint requirements.lock --build-constraint requirements.lock
define sync
	@$(UV) pip compile --no-header --no-annotate $(LOCKED) --output-file .venv/pins.txt $(1) pyproject.toml
	@$(UV) pip sync --require-hashes --compile-bytecode $(LOCKED) .venv/pins.txt
	@$(UV) pip install --no-deps --no-build-isolation --editable .
endef

.venv/installed: requirements.lock pyproject.toml .venv/bin/uv
	@echo "Installing the locked requirements into .venv ..."
	$(call sync,$(WANTED_EXTRAS:%=--extra %))
	@echo $(WANTED_EXTRAS) > .venv/extras
	@rm -f .venv/installed-dev
# Makes a plain `mlflow ui` in the activated environment show the project's own store.
	@grep -q MLFLOW_BACKEND_STORE_URI .venv/bin/activate || \
		echo 'export MLFLOW_BACKEND_STORE_URI="sqlite:///$(CURDIR)/mlflow/mlflow.db"' >> .venv/bin/activate
	@touch $@

.venv/installed-dev: .venv/installed
	$(call sync,--group dev $(patsubst %,--extra %,$(sort cluster server $(WANTED_EXTRAS))))
	@touch $@

install: .venv/installed  ## create .venv from the lock (EXTRAS="server cluster": with these extras)

run: .venv/installed  ## run all stages, from the data in params.yaml to a registered model
	@cracks check
	@dvc repro
	@cracks registered || dvc repro --single-item --force register
	@cracks summary

# DVC's full table has hundreds of columns. This one has F1 and ECE on test, the AUROC of each external test set (or of test
# if there is none) and the params that differ.
experiments: .venv/installed  ## compare the experiments of `dvc exp run`: scores, and the params that differ
	@dvc exp show --no-pager --only-changed \
		--drop '(data|models|pipeline|reports)(/[^:]*)?$$|Created|n$$|threshold$$|reports/metrics.json:|.*:balanced_accuracy'

data-docs: .venv/installed  ## build Great Expectations' Data Docs, the history of all validations, and print their address
	@cracks data-docs

flow: .venv/installed  ## run the stages as a Prefect flow, on the server of `make up` or an embedded one
	@python -m flows.training

PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
API_PORT ?= 8000

STARTER := data/serving/starter
$(STARTER)/decision.json: pipeline/inference/starter.npz pipeline/models/tracer.bin | .venv/installed
	@echo "Preparing the starter model, which is served until another is registered ..."
	@python -m pipeline.inference.build_starter served --out $(STARTER)

up: .venv/installed $(STARTER)/decision.json  ## start Prefect, MLflow, the schedules and the API on this machine (PREFECT_PORT=, MLFLOW_PORT=, API_PORT=)
	@python -m flows.local up --prefect-port $(PREFECT_PORT) --mlflow-port $(MLFLOW_PORT) --api-port $(API_PORT) \
		--starter $(STARTER)

down: .venv/installed  ## stop what `make up` started
	@python -m flows.local down

status: .venv/installed  ## show what runs, the last heartbeat of the schedules and the last runs
	@python -m flows.local status

serve: .venv/installed $(STARTER)/decision.json  ## serve the API and its page at http://127.0.0.1:8000 (API_PORT=)
	@python -m serving --params params.yaml --port $(API_PORT) --starter $(STARTER)

PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: .venv/installed-dev lint  ## run the linters and all but the soak tests (CRACKS_REAL_DATA=DIR adds tests on real images)
	@pytest -m "not slow and not soak" $(PARALLEL)
	@pytest -m "slow and not soak" $(PARALLEL)

test-soak: .venv/installed-dev  ## run the tests that take minutes each: kills, outages, many repetitions
	@pytest -m soak

test-fast: .venv/installed-dev  ## run the fast tests
	@pytest -m "not slow and not soak"

lint: .venv/installed-dev  ## run ruff, mypy, import-linter, hadolint and zizmor
	@ruff check . && ruff format --check . && mypy -n auto && lint-imports --no-logo && hadolint Dockerfile mlflow/Dockerfile \
		&& zizmor --quiet --offline .github

gc: .venv/installed  ## list what is older than `retention` in params.yaml; CONFIRM=yes deletes it
	@python -m flows.gc $(if $(filter yes,$(CONFIRM)),--delete)

# One lock for every platform, and for every extra and group.
lock: .venv/bin/uv  ## bring the lock in line with pyproject.toml (UPGRADE=yes: newest versions)
	@$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--all-extras --group api --group dev --group lock $(if $(filter yes,$(UPGRADE)),--upgrade) \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean:  ## remove the environment and the caches of the tools
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
