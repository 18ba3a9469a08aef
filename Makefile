# `make demo` and `make test` do everything on a fresh machine that has Python 3.10 or newer.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

# pip leaves compiling to the first import of each module, which has to keep it: else every process compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo shortcut pictures docs performance test check lint types versions clean

demo: $(INSTALLED)
	$(VENV)/bin/python examples/digits.py

shortcut: $(INSTALLED)
	$(VENV)/bin/python examples/shortcut.py

pictures: $(INSTALLED)
	$(VENV)/bin/python examples/reading.py
	$(VENV)/bin/python examples/label_noise.py
	$(VENV)/bin/python examples/class_imbalance.py
	$(VENV)/bin/python examples/layer_choice.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

performance: $(INSTALLED)
	$(VENV)/bin/python benchmarks/performance.py --data ../shared/data/voc07

# Types are checked while the tests run, and reported at the end.
test: lint
	@$(VENV)/bin/mypy >$(VENV)/types.txt 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto; tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/types.txt; \
	exit $$((tests | types))

versions: $(INSTALLED)
	$(VENV)/bin/python scripts/versions.py

check: lint types

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(INSTALLED)
	$(VENV)/bin/mypy

# Python's own pip may be years old, and takes twice as long to find out which versions go together.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo_logs lightning_logs site $(patsubst %,%_logs,shortcut reading noise imbalance layer)
