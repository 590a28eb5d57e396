# Set-up happens in .venv by itself; all it needs is Python 3.11 or newer (PYTHON=... names another one).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-full lint benchmark clean

help:
	@echo "make demo       compile a small model for arm and x86, and show the report"
	@echo "make test       style, types and the quick tests"
	@echo "make test-full  style, types and all tests"
	@echo "make lint       style and types only"
	@echo "make benchmark  compare with other quantizers; DATA=FOLDER adds models that are not in this repository"
	@echo "make clean      remove everything that the other commands wrote"

demo: $(VENV)/demo-installed
	@$(BIN)/python examples/demo.py

test: lint
	$(PYTEST) -m "not slow"

test-full: lint
	@$(MAKE) --no-print-directory $(VENV)/runtimes-installed || echo "some runtimes do not install here: their tests are skipped"
	$(PYTEST)

lint: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)/dev-installed
	$(BIN)/python -m benchmarks.end_to_end $(if $(DATA),--data $(DATA))

clean:
	rm -rf $(VENV) demo-out build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras; it is older than what it depends on, and pip runs again.
$(VENV)/%-installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing qcompiler[$*] into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
