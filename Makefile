# Everything a fresh machine needs: Python >= 3.11 with venv, make, and access to the package registries.
#
#   make up      set up what is missing, start engines and gateway    PORT=30000 ENGINES=2 ARGS='--model ...'
#   make test    set up what is missing, lint, type check, run every test (other vLLM versions, real engines)
#   make setup   the set-up alone: virtual environment, locked dependencies, model
#   make lock    resolve the dependencies anew (needs uv: made by `make setup`)

PYTHON ?= python3
PORT ?=
ENGINES ?=
ARGS ?=
VENV := .venv/bin
# The adapter over the Python sources of the oldest and the newest supported vLLM: fetched once, about 120 MB.
HOSTS := tests/hosts/test_versions.py

.PHONY: up test setup lint unit unit-computing unit-talking hosts engine lock clean

up: setup
	@exec $(VENV)/leafcutter up $(if $(PORT),--port $(PORT)) $(if $(ENGINES),--engines $(ENGINES)) $(ARGS)

# Three lanes at once: two cores are busy only if others compute while one waits for engines to start, or for sockets.
# The longest come first, and each shows its output when it has ended.
LANES := --no-print-directory --output-sync=target --jobs 3
test: setup
	@$(MAKE) $(LANES) engine unit-computing unit-talking hosts lint

setup:
	@PYTHON="$(PYTHON)" bash deploy/setup.sh

lint: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

# Two parts that take about as long: tests that mostly compute, and those that mostly talk over sockets.
COMPUTING := tests/engine_patches tests/deploy $(addprefix tests/router/,cli core learners policies prefix sim types) \
	$(wildcard tests/test_*.py)
unit: setup
	@$(MAKE) $(LANES) unit-talking unit-computing

unit-computing: setup
	$(VENV)/pytest $(COMPUTING)

unit-talking: setup
	$(VENV)/pytest $(addprefix --ignore ,tests/engine $(HOSTS) $(COMPUTING))

hosts: setup
	$(VENV)/pytest $(HOSTS)

engine: setup
	$(VENV)/pytest tests/engine

COMPILE = .venv/bin/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --no-header --no-annotate \
	--index-strategy unsafe-best-match --upgrade
lock: setup
	$(COMPILE) --extra gateway --extra cpu --extra dev --override deploy/locks/overrides.txt --output-file deploy/locks/cpu.txt \
		$(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)
	$(COMPILE) --extra gateway --extra cuda --extra dev --output-file deploy/locks/cuda.txt
	$(COMPILE) --extra gateway --constraint deploy/locks/cpu.txt --output-file deploy/locks/gateway.txt

clean:
	rm -rf .venv
