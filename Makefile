# `make help` lists what there is. DATA is "phantom" or your own data: see docs/your_data.md.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= phantom
NAME := $(basename $(notdir $(patsubst %/,%,$(DATA))))
# Only the synthetic demo replaces its last run: training refuses a folder that holds a run
OUT ?= runs/$(NAME)
RECIPE ?= $(if $(filter phantom,$(DATA)),configs/demo-phantom.yaml,configs/demo.yaml)
# Columns of your table, COLUMNS="image=Path Edema=edema_label"; a shell's width of that name does not count
TABLE := $(if $(findstring command line,$(origin COLUMNS)),--columns $(COLUMNS))
# Positives that a finding needs in the table of results: small data of your own may have few
MIN_POSITIVES ?= $(if $(filter phantom,$(DATA)),10,1)
MODEL ?= runs/phantom
# Of your own data: their validation split, or else what the training set aside
SPLIT ?= $(if $(filter phantom,$(DATA)),test)
# What the page shows beside a score: fitted on validation images, never on a split that you name to be evaluated. A
# classifier does not keep them
THRESHOLDS ?= $(if $(shell grep -l '^task: classification' $(RECIPE) 2>/dev/null),,$(if \
	$(filter phantom-test,$(DATA)-$(SPLIT)),--threshold_split validation --save_thresholds,$(if \
	$(SPLIT),,--save_thresholds)))

# The sample image of README and docs/start.md
SAMPLE := from processing_tier import read_radiograph; from processing_tier.readers import read_records; \
	record = read_records("phantom:num_images=5", "test")[4]; read_radiograph(record["image"]).save("chest.png")

# Two processes of one thread each: made for 2 cores, and no more memory on machines with many
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help env tools browser demo app test slow lint docs bench clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s '	'
	@echo
	@echo 'Variables of demo, as in make demo DATA=reports.csv COLUMNS="image=Path patient_id=Subject"'
	@echo '  DATA           folder, table or archive (default: phantom)'
	@echo '  COLUMNS        columns of a table, NAME=COLUMN ...'
	@echo '  RECIPE         options of the training (default: configs/demo-phantom.yaml, of other data configs/demo.yaml)'
	@echo '  SPLIT          split to evaluate (default: test of the phantom, validation or the held-out part of other data)'
	@echo '  MIN_POSITIVES  positives that an evaluated finding needs (default: 10 on the phantom, 1 on other data)'
	@echo '  THRESHOLDS     options that fit and save thresholds (default: on the validation split; THRESHOLDS= leaves them out)'
	@echo '  OUT            folder of the run (default: runs/ and the name of DATA)'
	@echo '  MODEL          of app: folder of a model (default: runs/phantom)'
	@echo '  PYTHON, VENV   the Python that makes the environment, and the folder of the environment'

env: $(VENV)/.installed  ## Make the environment (.venv) with the versions of constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dicom,plots]'
	@touch $@

tools: $(VENV)/.tools  ## Add what the tests need; make test does it

$(VENV)/.tools: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dicom,plots,dev]'
	@touch $@

# What only slow tests need: the page in a browser, trackers. Not in the environment, where it would raise the lowest
# versions that are tested
browser: env
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[app,trackers]' playwright
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null; } || \
		echo 'Chromium is not installed and apt-get cannot: the page is not tested in a browser.'

demo: env  ## Train, evaluate and draw: on synthetic radiographs, or on DATA=<folder or table>
	$(if $(filter runs/phantom,$(OUT)),rm -rf runs/phantom runs/phantom-evaluation)
	$(BIN)/python train_tier.py $(RECIPE) --data $(DATA) $(TABLE) --output_dir $(OUT)
	$(BIN)/python eval_zeroshot.py $(OUT) --data $(DATA) $(TABLE) $(if $(SPLIT),--split $(SPLIT)) \
		--min_positives $(MIN_POSITIVES) --output_dir $(OUT)-evaluation \
		$(THRESHOLDS) --figures --model_card
	@test -e chest.png || { $(BIN)/python -c '$(SAMPLE)' && echo 'chest.png is a synthetic radiograph to try.'; }

app: env  ## Open the page (tier-app) of MODEL, by default that of make demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[app]'
	$(BIN)/python app.py $(MODEL)

test: tools lint  ## Check the code and run the fast tests
	$(PYTEST)

slow: tools browser  ## Run the slow tests
	$(PYTEST) -m slow

lint: tools  ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.docs  ## Build the documentation as a site into site/, and fail on a dead link or a page left out
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Wrote site/: open site/index.html, or: $(BIN)/mkdocs serve"

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

# Not those that take long or need the history of the repository: speed/memory.py, speed/versions.py
bench: env  ## Measure speed, as ratios against a baseline in the same run
	@for script in $(filter-out $(addprefix speed/,turns.py memory.py versions.py),$(wildcard speed/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:  ## Remove the environment, the site and all runs
	rm -rf $(VENV) runs site
