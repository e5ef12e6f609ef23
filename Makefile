# Run `make help` for a list of the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# No telemetry.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := 1

PYTHON ?= $(shell command -v python3.11 || command -v python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
UV := uv --quiet

.PHONY: help install run experiments test test-fast test-soak lint flow serve up down status gc lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

.venv/bin/uv: requirements.lock
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; v == (3, 11) or sys.exit("Python 3.11 is needed, this is %d.%d. Install it, or give its path: make PYTHON=/path/to/python3.11" % v)'
	@test -x .venv/bin/python || "$(PYTHON)" -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/uv.lock
	@touch $@

# Installs exactly the lock, with bytecode: TensorFlow imports three times as fast with it.
.venv/installed: requirements.lock pyproject.toml .venv/bin/uv
	@echo "Installing the locked requirements into .venv ..."
	@VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip sync --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --no-deps --no-build-isolation --editable .
	@rm -f .venv/installed-dev
# Makes a plain `mlflow ui` in the activated environment show the project's own store.
	@grep -q MLFLOW_BACKEND_STORE_URI .venv/bin/activate || \
		echo 'export MLFLOW_BACKEND_STORE_URI="sqlite:///$(CURDIR)/mlflow/mlflow.db"' >> .venv/bin/activate
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	@VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --require-hashes --compile-bytecode --no-deps -r requirements-dev.lock
	@touch $@

install: .venv/installed  ## create .venv from the lock

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

flow: .venv/installed  ## run the stages as a Prefect flow, on the server of `make up` or an embedded one
	@python -m flows.training

PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
API_PORT ?= 8000

STARTER := data/serving/starter
$(STARTER)/decision.json: pipeline/inference/starter.npz | .venv/installed
	@echo "Preparing the starter model, which is served until another is registered ..."
	@python -m pipeline.inference.build_starter served --recipe data/demo.yaml --out $(STARTER)

up: .venv/installed $(STARTER)/decision.json  ## start Prefect, MLflow, the schedules and the API on this machine (PREFECT_PORT=, MLFLOW_PORT=, API_PORT=)
	@python -m flows.local up --prefect-port $(PREFECT_PORT) --mlflow-port $(MLFLOW_PORT) --api-port $(API_PORT) \
		--starter $(STARTER)

down: .venv/installed  ## stop what `make up` started
	@python -m flows.local down

status: .venv/installed  ## show what runs, the last heartbeat of the schedules and the last runs
	@python -m flows.local status

serve: .venv/installed $(STARTER)/decision.json  ## serve the API and its page at http://127.0.0.1:8000 (API_PORT=)
	@python -m serving --params params.yaml --port $(API_PORT) --starter $(STARTER)

test: .venv/installed-dev lint  ## run the linters and all but the soak tests (CRACKS_REAL_DATA=DIR adds tests on real images)
	@pytest -m "not soak" --numprocesses logical --maxprocesses 4 --dist loadfile

test-soak: .venv/installed-dev  ## run the tests that take minutes each: kills, outages, many repetitions
	@pytest -m soak

test-fast: .venv/installed-dev  ## run the fast tests
	@pytest -m "not slow and not soak"

lint: .venv/installed-dev  ## run ruff, mypy, import-linter and hadolint
	@ruff check . && ruff format --check . && mypy && lint-imports --no-logo && hadolint Dockerfile mlflow/Dockerfile

gc: .venv/installed  ## list what is older than `retention` in params.yaml; CONFIRM=yes deletes it
	@python -m flows.gc $(if $(filter yes,$(CONFIRM)),--delete)

COMPILE := $(UV) pip compile --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --generate-hashes --no-emit-index-url
lock: .venv/bin/uv  ## update the three locks from pyproject.toml
	@$(COMPILE) --upgrade --output-file requirements.lock pyproject.toml
	@$(COMPILE) --constraint requirements.lock --output-file requirements-dev.lock --group dev pyproject.toml
	@$(COMPILE) --constraint requirements.lock --output-file requirements-api.lock --group pyproject.toml:api

clean:  ## remove the environment and the caches of the tools
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
