# Every target makes .venv by itself when it is missing.
PYTHON ?= python3
BIN := .venv/bin
QUICK := --quiet --no-compile -c constraints.txt# compiled is what is imported, not 200 MB of sources

# A shell that forbids it would have each of hundreds of processes compile torch again: ten seconds of each.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: docs demo readme-demo results check-results readme test coverage slow exhaustive pythons crash mutate golden check clean
.DEFAULT_GOAL := test

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(QUICK) torch
	$(BIN)/pip install $(QUICK) -e '.[dev]'
	$(BIN)/pip install $(QUICK) --no-deps timm torchvision axe-playwright-python  # for tests: the torch stays, no downloader, no browser
	touch $@

# Ten labelled images a class: few enough that methods differ, cheap enough for six seeds. A machine of one kind prints
# the same again; another CPU has other last bits, and with them other hundredths.
DEMO := compare --data digits --train-samples 100 --batch-size 32 --student small-cnn --epochs 100 --seeds 6 --seed 50 --equal-compute

demo: $(BIN)/.ready  ## does it help? five methods, plain for as long as the dearest, six seeds: at most 3 minutes
	$(BIN)/teacherless $(DEMO) --out runs/demo
	@echo "your own photos, a folder per class: $(BIN)/teacherless compare --data path/to/photos --student resnet8"

readme-demo: $(BIN)/.ready  ## the demo once more from nothing, and what it prints into the README
	rm -rf runs/readme-demo
	$(BIN)/python benchmarks/readme_demo.py $(BIN)/teacherless $(DEMO) --out runs/readme-demo

results: $(BIN)/.ready  ## a study of results/ again, as designed: make results STUDY=digits
	$(BIN)/python results/ledger.py run $(STUDY)

check-results: $(BIN)/.ready  ## one network of the ledger, picked at random, trained again: the same bits?
	$(BIN)/python results/ledger.py check $(STUDY)

readme: $(BIN)/.ready  ## every number that README.md and docs/learnt.md take from the ledger
	$(BIN)/python results/ledger.py write

test: $(BIN)/.ready  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not exhaustive'

coverage: $(BIN)/.ready  ## the tests once more, and which lines of code they reach
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow and not exhaustive' --cov --cov-report=term:skip-covered

slow: $(BIN)/.ready  ## a recipe of every method and data set run small, and runs that are killed and resumed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

exhaustive: $(BIN)/.ready  ## every recipe, every crash point, thousands of damaged files and command lines: more than an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m exhaustive

pythons:  ## losses, golden curves and the command line on Python 3.12 and 3.13, where they are: some gigabytes of torch each
	tests/pythons.sh

crash: $(BIN)/.ready  ## 200 kills at random moments over all methods and engines, 50 of the command line: compared bit for bit
	TEACHERLESS_CRASHES=200 $(BIN)/python -m pytest -s tests/training/test_kills.py
	TEACHERLESS_CRASHES=50 $(BIN)/python -m pytest -s tests/training/test_crash.py

INPUTS ?= 20000
FUZZ := .venv-fuzz/bin
$(FUZZ)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-fuzz
	$(FUZZ)/pip install $(QUICK) torch
	$(FUZZ)/pip install $(QUICK) -e . atheris
	touch $@

.PHONY: fuzz
fuzz: $(FUZZ)/.ready  ## coverage-guided fuzzing of all that reads files: INPUTS=20000 for each of 12 readers
	OMP_NUM_THREADS=1 $(FUZZ)/python tests/fuzz/fuzz.py --inputs $(INPUTS)

.PHONY: soak
soak: $(BIN)/.ready  ## 30 minutes of runs that are stopped, killed, gone on with, compared: SOAK_MINUTES=30 SOAK_SEED=…
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

mutate: $(BIN)/.ready  ## the losses and methods broken in a hundred ways, each to be noticed: some minutes
	$(BIN)/python tests/mutate.py

golden: $(BIN)/.ready  ## rewrite the golden loss curves, and say which changed
	$(BIN)/python tests/test_golden.py

check: $(BIN)/.ready  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(BIN)/.ready  ## the site, from docstrings and cards, for a browser: site/index.html
	$(BIN)/pip install $(QUICK) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "open: site/index.html"

clean:
	rm -rf .venv .venv-fuzz runs dist site
