# Every target sets itself up: a .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# Workers that share the cores lose more by waiting for each other's threads than they gain by them.
CALM := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: demo test test-slow chromium lint bench proto serve clean
.DEFAULT_GOAL := test

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onnx-audit needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/installed  ## Train three small networks, audit one, leave a report
	$(BIN)/onnx-audit demo

lint: .venv/installed  ## Style, types, layers, schema
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python proto/generate.py --check
	$(BIN)/python proto/check.py

chromium:  ## Debian's Chromium, in which tests look at pages, where it is missing and root may install it
	@command -v chromium >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
		{ apt-get -qq update && apt-get -qq install --no-install-recommends --yes chromium >/dev/null; } || \
		echo "Chromium could not be installed: tests of pages are skipped"

test: lint chromium  ## Everything that must hold before a change lands
	$(CALM) $(BIN)/pytest -n $(WORKERS) -m 'not slow'

test-slow: .venv/installed  ## The longer proofs
	$(BIN)/pytest -m slow

bench: .venv/installed  ## Ours beside the peers
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

proto: .venv/installed  ## Regenerate client/onnx_audit/v1 from the schema
	$(BIN)/python proto/generate.py

serve: .venv/installed  ## Run the service on this machine
	$(BIN)/onnx-audit serve

clean:
	rm -rf .venv
