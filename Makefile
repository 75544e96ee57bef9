# Two commands do all set-up on a machine that has Python >= 3.10 and make:
#   make demo   enhance the clips in samples/ with the checkpoint in ckpts/
#   make test   the tests
#   make app    the web page, on http://127.0.0.1:7860; ARGS="--port 8000 ..." are options of app.py
#   make demo_video   record the page in use; needs Chromium
#   make ablation NAME=no_vce   train a variant of the small model without a part of the design, and score it
#   make paper   docs/paper/paper.tex and paper.pdf, by pandoc and Typst, which are installed for it
#   make tables   write the tables of README.md and docs/paper/paper.md anew from docs/results
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: demo app demo_video ablation tables paper test test-all lint clean

demo: $(STAMP)
	$(BIN)/python -m evaluation.demo

app: $(STAMP)
	$(BIN)/python app.py $(ARGS)

demo_video: $(STAMP)
	$(BIN)/python -m evaluation.demo_video $(ARGS)

ablation: $(STAMP)
	$(BIN)/python -m evaluation.ablation $(NAME) $(ARGS)

tables: $(STAMP)
	$(BIN)/python -m evaluation.readme_results
	$(BIN)/python -m evaluation.paper

paper: tables
	$(BIN)/python -m pip install --quiet pypandoc_binary typst
	$(BIN)/python -m evaluation.paper --print

test: $(STAMP)
	$(BIN)/python -m pytest

test-all: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .

# torch is installed first and by its exact version: a later release would bring gigabytes of CUDA libraries.
$(STAMP): requirements.txt requirements-enhance.txt requirements-app.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python >= 3.10 is needed; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet "pesq>=0.0.4" || echo "pesq needs a C compiler: going on, but PESQ cannot be scored"
	$(BIN)/python -m pip install -qq --no-deps --editable .
	@touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info
