# `make demo` installs everything and runs the main job; `make test` installs everything and runs the tests.
# A machine with its own CUDA torch: make demo VENV_FLAGS=--system-site-packages TORCH=
PYTHON ?= python3
VENV_FLAGS ?=
TORCH ?= torch
PRICE ?= 2.0

BIN := .venv/bin
# The stamp's name follows what is to be installed: nothing is downloaded twice, and nothing stale is kept.
STAMP := .venv/ready-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)

.PHONY: demo test test-slow bench bench-search bench-trainer lint setup

setup: $(STAMP)

$(STAMP):
	@echo "Setting up .venv (the downloads take a few minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV_FLAGS) .venv
	grep -v -E '$(if $(TORCH),^$$,^(torch|jax|jaxlib)==)' constraints.txt > .venv/constraints.txt
	$(if $(TORCH),$(BIN)/pip install -q -c .venv/constraints.txt $(TORCH))
	$(BIN)/pip install -q -c .venv/constraints.txt -e ".[all,dev]"
	rm -f .venv/ready-*
	touch $@

demo: $(STAMP)
	$(BIN)/autotune doctor
	$(BIN)/autotune search atari --games Breakout --budget 3m --price $(PRICE) --new
	$(BIN)/autotune report --price $(PRICE)

# Three at a time, for many wait, a file's tests in one process; `pytest` alone runs them one by one, as on a GPU it has to.
# PASSIVE: threads of OpenMP that have nothing to do leave the cores to the other processes (a fifth of the CPU time).
test: $(STAMP)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 3 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

bench: $(STAMP)
	$(BIN)/python -m pytest -o addopts="-q --import-mode=importlib" --benchmark-only --benchmark-autosave tests/benchmarks

# Hours of CPU time for all methods; a stopped one goes on, and SEEDS=3 METHODS=autotune takes a minute.
bench-search: $(STAMP)
	$(BIN)/python reports/reference/search/bench.py --seeds $(or $(SEEDS),50) $(if $(METHODS),--methods $(METHODS))

# Stable-Baselines3 in an environment of its own; a stopped run goes on.
bench-trainer: $(STAMP) .venv-sb3/ready
	$(BIN)/python reports/reference/trainer/run.py --rounds $(or $(ROUNDS),3) --sb3-python .venv-sb3/bin/python

.venv-sb3/ready: constraints.txt
	test -x .venv-sb3/bin/python || $(PYTHON) -m venv .venv-sb3
	.venv-sb3/bin/pip install -q -c constraints.txt torch
	.venv-sb3/bin/pip install -q -c constraints.txt stable-baselines3 envpool
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
