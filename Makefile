# make demo | test | check | audit | bench | faults | gpu | docs. Each makes the virtual environment first, where it is missing or
# outdated.
# Settings: PYTHON=python3.12, VENV=.venv, JOBS=2 (processes of the test run), ARGS="--seeds 3" (handed to the demo).
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

# The package's own page shows its public names; these are the rooms that are not among them.
DOCUMENTED := limbeck $(addprefix limbeck.,features distributed distiller terms training storage logs detection segmentation cache assembly recipes runs \
  studies report errors)

.PHONY: demo test check audit format bench faults gpu docs clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed
	$(BIN)/limbeck compare --recipe digits $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

audit: $(VENV)/.installed-dev
	@$(BIN)/python .ci/audit.py $(BIN)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed-dev
	$(BIN)/limbeck benchmark $(ARGS)

faults: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/kills.py $(ARGS)
	$(BIN)/python -m pytest -m long --long -n $(JOBS) --dist loadfile --no-loadscope-reorder --jaxtyping-packages=limbeck,typechecking.shapes

gpu: $(VENV)/.installed-dev
	$(INSTALL) '.[bench]'
	$(BIN)/python -m benchmarks.gpu $(ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/pdoc --docformat google --output-directory site $(DOCUMENTED)
	@echo "site/index.html"

clean:
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .hypothesis

# The stamps: younger than what they were made from, so an edited pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; limbeck needs Python 3.11 or newer (make PYTHON=/path/to/python3.11)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "%s is Python %d.%d; limbeck needs 3.11 or newer (make PYTHON=/path/to/python3.11)" % (sys.executable, v[0], v[1]))'
	@echo "installing limbeck into $(VENV): the first time this downloads PyTorch and takes some minutes" >&2
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests and checks need" >&2
	$(INSTALL) '.[dev]'
	@touch $@
