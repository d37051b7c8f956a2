# Each target does all of its own set-up: `git clone`, then `make demo` or `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHARED ?= ../shared
# A stamp that is renewed when what is to be installed changes.
READY := $(VENV)/.ready

# A local copy of corpus and encoder, where there is one; else they come from the network.
LOCAL := $(if $(wildcard $(SHARED)/encoder),--vars.encoder $(SHARED)/encoder) \
	$(if $(wildcard $(SHARED)/data),--vars.mirror $(SHARED)/data)
DEMO := $(LOCAL) --vars.name demo --vars.stage1_steps 240 --vars.stage2_steps 40 \
	--vars.eval_frequency 120 --vars.limit 300 --vars.repeats 1

.PHONY: demo test clean

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v[:2] <= (3, 13) and "Python 3.10 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $(READY)

# The whole WNUT-17 workflow on a small budget: convert, both training stages, evaluate, report.
demo: $(READY)
	$(BIN)/python -m spacy project run demo . $(DEMO)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy spacy_earlyexit scripts
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) corpus training
