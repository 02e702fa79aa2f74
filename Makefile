# Two commands set everything up: `make train` and `make test`. `make help` lists the rest.
#
# Which torch? One that PYTHON can already import (2.6 or newer) is kept. Otherwise pip takes the version in
# constraints.txt; put wheels for the CPU or another CUDA in its reach with, for example,
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make install

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?= init=svd rank=16
TESTS ?=
JOBS ?= 8
STUDY ?= rank_sweep
SIZE ?= quick
STUDIED := multirun/$(STUDY)/$(shell date +%Y-%m-%d_%H-%M-%S)

.DEFAULT_GOAL := help
.PHONY: help install train smollm2 study test faults lint bench dashboard base

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Make .venv and install the lab into it; PYTHON=python3.12 chooses the interpreter

train: install  ## The main job; ARGS="init=pissa rank=8" for another
	$(BIN)/python -m lab.train $(ARGS)

smollm2: install  ## Fetch a real instruct model of 135 million parameters: 93 MB, 0.5 GB on disk; model=smollm2_135m uses it
	$(BIN)/python -m lab.fetch smollm2_135m

study: install  ## A quick study and its report; STUDY=init_comparison for another, SIZE=default for all of it
	$(BIN)/python -m lab.train experiment=$(STUDY) study_size=$(SIZE) hydra.sweep.dir=$(STUDIED)
	$(BIN)/python -m lab.report $(STUDIED)

test: install  ## All tests, as many at once as there are processors, up to JOBS=8; TESTS=tests/init for some
	$(BIN)/python -m pytest -n logical --maxprocesses $(JOBS) --dist worksteal $(TESTS)

faults: install  ## Every kill and every mutant that `make test` samples: docs/reliability.md
	$(BIN)/python -m pytest -n logical --maxprocesses $(JOBS) --dist worksteal -m exhaustive $(TESTS)

lint: install  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## Speed and memory beside transformers.Trainer and a bare loop
	$(BIN)/python -m lab.bench

dashboard: install  ## TensorBoard on multirun/, at http://localhost:6006
	$(BIN)/python -m tensorboard.main --logdir multirun --host localhost --port 6006

base: install  ## Train the shipped base again and put it in lab/assets/base
	$(BIN)/python -m lab.train experiment=base hydra.run.dir=multirun/base
	$(BIN)/python -m lab.train experiment=base_docs model.name_or_path=multirun/base/model hydra.run.dir=multirun/base_docs
	$(BIN)/python -m lab.assets.base multirun/base multirun/base_docs

# A torch that PYTHON can import stays in use: its folder joins the new environment's path and pip is held to its version.
# (`venv --system-site-packages` would miss a torch that itself lives in a virtual environment.)
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python %d.%d at %s is too old: the lab needs 3.11 or newer; try make install PYTHON=python3.12" % (v[0], v[1], sys.executable))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@cp constraints.txt $(VENV)/constraints.txt
	@found=$$($(PYTHON) -c 'import importlib.metadata as m, pathlib, re, torch; v = m.version("torch"); print(v if tuple(map(int, re.findall(r"\d+", v)[:2])) >= (2, 6) else "", pathlib.Path(torch.__file__).parents[1])' 2>/dev/null); \
	version=$${found%% *}; folder=$${found#* }; \
	if [ -n "$$version" ]; then \
		echo "keeping torch $$version in $$folder"; \
		echo "import site; site.addsitedir('$$folder')" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kept_torch.pth; \
		{ grep -v '^torch==' constraints.txt; echo "torch==$$version"; } > $(VENV)/constraints.txt; \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q lab  # where PYTHONDONTWRITEBYTECODE is set, every start would compile again
	@$(BIN)/python -c 'from lab.data.stdlib import corpus; corpus("docs")'  # Python's own library, read once and kept
	@touch $@
