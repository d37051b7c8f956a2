# Each target does all of its own set-up: `git clone`, then `make demo` or `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A stamp that is renewed when what is to be installed changes.
READY := $(VENV)/.ready

# Where `make benchmark` finds encoder and corpora.
DATA ?= ../shared

.PHONY: demo test benchmark clean

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v[:2] <= (3, 13) and "Python 3.10 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $(READY)

# The whole workflow on the sample corpus: encoder, conversion, both training stages, evaluation.
# What is up to date is not done again.
demo: $(READY)
	$(BIN)/python -m spacy project run all .

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy spacy_earlyexit scripts benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Trains what is compared (hours, once), then times it. DATA is a folder with encoder/ and data/.
benchmark: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[benchmark]'
	for name in wnut17 ewt; do for step in corpus joint self-sampling calibrate; do \
	    $(BIN)/python -m spacy project run $$name-$$step . --vars.encoder $(DATA)/encoder --vars.mirror $(DATA)/data \
	        --vars.gold true --vars.gold_flag --gold-preproc || exit 1; \
	done; done
	$(BIN)/python benchmarks/run.py train --encoder $(DATA)/encoder
	$(BIN)/python benchmarks/run.py run

clean:
	rm -rf $(VENV) corpus training packages assets/encoder
