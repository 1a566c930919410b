# Two commands do everything on a fresh machine with Python 3.11 or newer: make demo, make test.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := demo
# One place for compiled programs, so that a second run starts at once.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help install demo test test-quick lint docs docs-check bench soak clean

help:
	@echo "make demo    synthetic streets: write, train, evaluate, show ($(DEMO)/)"
	@echo "make test    the test suite; make test-quick: some tests of every folder, in 2 minutes"
	@echo "make bench   the benchmarks of docs/benchmarks.md, against PyTorch"
	@echo "make soak    kills, full disks, damaged and hostile files: docs/soak.md (half an hour)"
	@echo "make lint    ruff, the direction of imports (import-linter), types (mypy)"
	@echo "make docs    README's pages and the Python interface as a site with search (build/site/)"
	@echo "make docs-check  run every command and Python block of README and docs/ (15 minutes)"
	@echo "make clean   remove $(DEMO)/ and the compilation cache"

install: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/installed
	$(RUN) -m hrnet_jax.data.synthetic --output=$(DEMO)/streets --train=200 --val=20 \
	  --height=128 --width=256
	$(RUN) train.py --config=configs/demo.py --config.data.root=$(DEMO)/streets \
	  --workdir=$(DEMO)/run
	$(RUN) evaluate.py --checkpoint=$(DEMO)/run --output=$(DEMO)/evaluation
	$(RUN) -m hrnet_jax.tools.side_by_side --checkpoints=$(DEMO)/run --shipped \
	  --output=$(DEMO)/networks.png "$(or $(STREET),$$(ls $(DEMO)/streets/leftImg8bit/val/*/*.png | head -n 1))"
	@echo
	@echo "The demo left in $(DEMO)/evaluation:"
	@echo "  metrics.json   every metric    report.html   open it in a browser"
	@echo "  overlays/      best and worst images"
	@echo "and $(DEMO)/networks.png: one image as labeled by the new network and by the shipped ones;"
	@echo "make demo STREET=photo.jpg takes your image"

test: $(VENV)/installed
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

# The tests of tests/quick.txt.
test-quick: $(VENV)/installed
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=5 \
	  $$(grep -v '^#' tests/quick.txt)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=. $(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

$(VENV)/installed-docs: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(VENV)/installed-docs
	$(RUN) docs/options.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "Read build/site/index.html, with search: python3 -m http.server --directory build/site"

docs-check: $(VENV)/installed
	$(RUN) docs/check.py --run

$(VENV)/installed-bench: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

bench: $(VENV)/installed-bench
	$(RUN) benchmarks/run.py

soak: $(VENV)/installed
	$(RUN) benchmarks/soak.py --table=docs/soak.md

clean:
	rm -rf $(DEMO) .cache
