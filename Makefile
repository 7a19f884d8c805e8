# Every target sets itself up: a .venv with the pinned versions of constraints.txt, and a .tools with
# the programs of deploy/tools.txt that tests run.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# Workers that share the cores lose more by waiting for each other's threads than they gain by them.
CALM := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: demo test test-slow test-gpu chromium prometheus buildah lint bench proto manifests settings release \
	image serve clean
.DEFAULT_GOAL := test

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onnx-audit needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

.tools/installed: deploy/tools.txt deploy/tools.py
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -r deploy/tools.txt
	.tools/bin/python deploy/tools.py
	@touch $@

# Environments of single programs, whose pins suit nobody else's.
.tools-%/installed: deploy/%.txt
	$(PYTHON) -m venv .tools-$*
	.tools-$*/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -r $<
	@touch $@

buildah:  ## buildah and mmdebstrap, in which a test builds the image, where root may install them
	@command -v buildah >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
		{ apt-get -qq update && apt-get -qq install --no-install-recommends --yes buildah mmdebstrap >/dev/null; } || \
		echo "buildah could not be installed: the test of the image is skipped"

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

prometheus:  ## Debian's Prometheus, by which tests scrape the service, likewise
	@command -v prometheus >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
		{ apt-get -qq update && apt-get -qq install --no-install-recommends --yes prometheus >/dev/null; } || \
		echo "Prometheus could not be installed: tests of alerts and the dashboard are skipped"

test: lint chromium prometheus .tools/installed  ## Everything that must hold before a change lands
	$(CALM) $(BIN)/pytest -n $(WORKERS) -m 'not slow'

test-slow: .venv/installed .tools/installed .tools-checkov/installed .tools-sbom/installed buildah  ## The longer proofs
	$(BIN)/pytest -m slow

test-gpu: .venv/installed  ## The auditors' tests on a GPU, beside the CPU and in its place
	$(BIN)/pytest tests/auditors/test_cuda.py
	$(BIN)/pytest -p tests.on_device -m 'not slow' --ignore tests/auditors/network tests/auditors

bench: .venv/installed  ## Ours beside the peers
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

proto: .venv/installed  ## Regenerate client/onnx_audit/v1 from the schema
	$(BIN)/python proto/generate.py

manifests: .venv/installed .tools/installed  ## Regenerate what is made of the Kustomize overlays
	$(BIN)/python deploy/helm/generate.py

settings: .venv/installed  ## Regenerate the table of settings in docs/operations.md
	$(BIN)/python docs/settings_table.py

# A build is the same whenever it is made of the same commit.
EPOCH = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

release: .venv/installed .tools-sbom/installed  ## Wheel and sdist in dist/, each with what is in it
	rm -f dist/*.whl dist/*.tar.gz
	SOURCE_DATE_EPOCH=$(EPOCH) PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m build --outdir dist .
	SOURCE_DATE_EPOCH=$(EPOCH) .tools-sbom/bin/python deploy/sbom.py --extras server,tracing \
		--site "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" --output dist/onnx-audit-$(VERSION).cdx.json

# BUILDER is docker or buildah; IMAGE_OPTIONS go to its command, such as
# --secret id=pip_conf,src=... and --build-arg BASE_IMAGE=...
BUILDER ?= docker
VARIANT ?= cpu
TAG = $(VERSION)$(if $(filter cuda,$(VARIANT)),-cuda)
IMAGE ?= onnx-audit:$(TAG)
image: .tools-sbom/installed  ## The service as an image, and in dist/ what is in it
	$(BUILDER) build --file deploy/Dockerfile --tag $(IMAGE) \
		--build-arg VARIANT=$(VARIANT) --build-arg SOURCE_DATE_EPOCH=$(EPOCH) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) \
		--build-arg CREATED=$(shell date -u -d @$(EPOCH) +%Y-%m-%dT%H:%M:%SZ) $(IMAGE_OPTIONS) .
	SOURCE_DATE_EPOCH=$(EPOCH) deploy/image/bill.sh "$(BUILDER)" $(IMAGE) .tools-sbom/bin/python \
		dist/onnx-audit-image-$(TAG).cdx.json

serve: .venv/installed  ## Run the service on this machine
	$(BIN)/onnx-audit serve

clean:
	rm -rf .venv .tools .tools-*
