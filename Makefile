# Needs Python 3.10 or newer, make and git; everything else goes into .venv. README.md has the same commands for Windows.

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := $(VENV)/.ready

# Networks as small as the book's are fastest on one thread.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help book serve test notebooks links pins clean

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*##/make \1\t/p' Makefile

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('Python 3.10 or newer is needed; $(PYTHON) is ' + sys.version.split()[0])"
	@echo "Installing into $(VENV); the first time this takes a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# A page with a warning is not read again while it stays as it is, so a failed build forgets what it has read.
book: $(READY)  ## render the book into _build/html
	@$(BIN)/python book/vendor.py
	$(BIN)/jupyter-book build -W -n --keep-going . || { rm -rf _build/.doctrees; exit 1; }
	@echo "The book is _build/html/index.html; 'make serve' shows it on http://127.0.0.1:$(PORT)"

serve: book  ## show the book on localhost
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

test: $(READY)  ## ruff, every notebook by nbval, every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadscope --nbval chapters book tests

notebooks: $(READY)  ## run every chapter again and store its outputs
	$(BIN)/python book/notebooks.py

links: $(READY)  ## write the book's address, set in _config.yml, wherever it is mentioned
	$(BIN)/python book/links.py

pins: $(READY)  ## resolve requirements.txt anew from pyproject.toml, keeping the versions that still fit
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra book --extra tests --extra benchmarks \
		--no-annotate --custom-compile-command "make pins" -o requirements.txt pyproject.toml
	grep -vE "^(cuda|nvidia|triton)|pypy" requirements.txt > requirements.tmp && mv requirements.tmp requirements.txt

clean:  ## remove what was built; .venv stays
	rm -rf _build dist .pytest_cache .ruff_cache
