PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
# Options of pip that hold versions; `make test CONSTRAINTS=` takes the newest of everything.
CONSTRAINTS ?= -c constraints.txt
# Real sections for tests and tutorials; what needs them is skipped where there are none.
IMG2GENE_DATA ?= $(wildcard ../shared/data)
ifneq ($(IMG2GENE_DATA),)
test docs: export IMG2GENE_DATA := $(shell cd "$(IMG2GENE_DATA)" && pwd)
endif

BIN := $(VENV)/bin/python
.DEFAULT_GOAL := help
.PHONY: help demo test reliability bench zoo lint docs test-matrix test-lowest test-partners clean distclean
# Targets share an environment that only one pip at a time may change.
.NOTPARALLEL:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Waiting OpenMP threads sleep: on shared cores, spinning ones slow down the demo itself.
demo: export OMP_WAIT_POLICY ?= passive
demo: $(VENV)/.installed-demo  ## train img2gene and the ridge, predict, score into demo_output/ (DATA=<folder> for real sections; MODEL=ridge)
	$(BIN) demo/run.py --out demo_output $(if $(DATA),--data "$(DATA)") $(if $(MODEL),--model $(MODEL))

# One thread per process: the processes already fill the cores, and spinning OpenMP threads would only delay each other.
# A test that hangs is named after ten minutes, instead of stopping the whole run without a word. A process that has nothing
# left takes tests from the other, as long ones stand together.
test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/.installed-test  ## run the whole test suite and the docstrings' examples (ARGS=<options of pytest>)
	$(BIN) -m pytest -n $(JOBS) --dist worksteal --timeout 600 --doctest-modules $(ARGS) tests src/img2gene

# Finished steps are kept, so an interrupted run goes on where it was: make reliability ARGS="--minutes 30"
reliability: export OMP_NUM_THREADS ?= 1
reliability: $(VENV)/.installed-test  ## damage models, kill, interrupt and race in full numbers, into benchmarks/results/reliability.md (ARGS=<options>)
	$(BIN) benchmarks/reliability.py $(ARGS)

bench: export OMP_NUM_THREADS ?= 2
bench: $(VENV)/.installed-test  ## print the tables of work on slides, stores and clusters (ARGS="--quick", or --only predict_out.py)
	$(BIN) benchmarks/bench.py $(ARGS)

zoo: $(VENV)/.installed-demo  ## build the models that the public sections allow, each with a card that states its held-out score
	$(BIN) benchmarks/zoo.py --out zoo $(ARGS)

lint: $(VENV)/.installed-lint  ## check style, format and types
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .
	$(BIN) -m mypy

# -E: a tutorial's output depends on the source, which Sphinx does not know of. Pages run side by side, one thread each. Sphinx
# deals them out in a few large parts, so twice as many processes keep the cores busy until the last part is done.
docs: export OMP_NUM_THREADS ?= 1
docs: $(VENV)/.installed-doc  ## build the documentation into docs/_build/html, warnings are errors
	$(BIN) -m sphinx -E -W --keep-going -n -j $(shell expr 2 \* $(JOBS)) -b html docs docs/_build/html
	$(BIN) -m pytest -q tests/test_site.py

test-matrix: test-3.11 test-3.12 test-3.13  ## run the suite on every supported Python, found through pyenv

# The constraints name a release of torch whose CPU build may exist for 3.11 only: others take the newest torch.
test-3.11: ON = 3.11
test-3.11: HELD = $(CONSTRAINTS)
test-3.12: ON = 3.12
test-3.13: ON = 3.13
.PHONY: test-3.11 test-3.12 test-3.13
test-3.11 test-3.12 test-3.13:
	@python="$$(ls -d "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(ON).*/bin/python 2>/dev/null | sort -V | tail -n 1)"; \
	python="$${python:-$$(command -v python$(ON))}"; \
	test -n "$$python" || { echo "No Python $(ON): run 'pyenv install $(ON)'." >&2; exit 1; }; \
	$(MAKE) test PYTHON="$$python" VENV=.venv-$(ON) CONSTRAINTS="$(HELD)"

# uv takes the lowest release that pyproject.toml allows of each package that it names; their own dependencies are the newest
# that fit. torch is that of the constraints, as older CPU builds are not in the package index. Old releases warn of newer ones.
LOWEST := .venv-lowest
test-lowest: export OMP_NUM_THREADS ?= 1
test-lowest: $(LOWEST)/.installed  ## run the suite with the lowest releases that pyproject.toml allows (ARGS=<options of pytest>)
	$(LOWEST)/bin/python -m pytest -n $(JOBS) --timeout 600 -W ignore $(ARGS) tests

$(LOWEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct $(CONSTRAINTS) -e ".[wsi]"
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python $(CONSTRAINTS) --group test
	touch $@

# LazySlide brings its model zoo, and Snakemake holds releases of other packages, so they get an environment of their own.
PARTNERS := .venv-partners
test-partners: export OMP_NUM_THREADS ?= 1
test-partners: $(PARTNERS)/.installed  ## run the tests of LazySlide, of pathology encoders and of Snakemake against the installed packages
	PATH="$(abspath $(PARTNERS))/bin:$$PATH" $(PARTNERS)/bin/python -m pytest $(ARGS) tests/test_lazyslide.py tests/test_zoo.py
	PATH="$(abspath $(PARTNERS))/bin:$$PATH" $(PARTNERS)/bin/python -m pytest $(ARGS) -k snakemake tests/test_command_line.py

$(PARTNERS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(PARTNERS)
	$(PARTNERS)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(PARTNERS)/bin/python -m pip install --quiet $(CONSTRAINTS) -e ".[zoo]" --group test "lazyslide>=0.13" "snakemake>=8"
	touch $@

clean:  ## remove what the other targets wrote, but for the environments
	rm -rf demo_output docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find src tests docs demo benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## clean, and remove the environments
	rm -rf .venv .venv-*

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "img2gene needs Python 3.11 or newer: make PYTHON=<one>")'
	$(PYTHON) -m venv $(VENV)
	$(BIN) -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

# One stamp per dependency group, so that targets share an environment and install only what they lack.
$(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN) -m pip install --quiet $(CONSTRAINTS) -e . --group $*
	touch $@
