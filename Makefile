# Every target sets up what it needs on a machine that has Python 3.11-3.13 and make.
# The environment is .venv; it is made once (about a minute, 2.9 GB on disk).

PYTHON ?= python3
# More words for the one pip call that installs torch and torchvision, such as another index with
# CPU builds of both:
#   make venv TORCH_ARGS="--index-url <address>"
TORCH_ARGS ?=

# Python puts no folder of its own accord first on its path: the packages of the tree are imported as
# dit8.quant, ..., and a package called `kernels` is Hugging Face's.
export PYTHONSAFEPATH := 1

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# -qq: errors only. Constraints hold every package at the version the tests ran with.
PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv install demo tables test mutants check format parity test-gpu clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make the environment .venv with everything demo and test need
install: venv

$(STAMP): pyproject.toml constraints.txt models/torchvision_shim.py
	@command -v $(PYTHON) >/dev/null || { echo "make: no program '$(PYTHON)' found, \
	Python 3.11, 3.12 or 3.13 is needed; name one with 'make PYTHON=python3.11 ...'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
	"make: Python 3.11, 3.12 or 3.13 is needed, got %d.%d from $(PYTHON); name another with \"make PYTHON=python3.11 ...\"" % v)'
	@echo "installing into $(VENV) (once; about 2.9 GB on disk) ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# torch first: asked for by another package, pip may choose a newer release with gigabytes of
	@# CUDA libraries; once it is there, the constraint keeps it. torchvision from where torch is:
	@# one from elsewhere may be linked against another build.
	@$(PIP_INSTALL) $(TORCH_ARGS) torch torchvision
	@$(PIP_INSTALL) -e '.[ocr,clip,lpips,gguf,nf4,comfy,test]'
	@$(PY) models/torchvision_shim.py
	@touch $@

demo: $(STAMP) ## quantize the mini model, compare bf16, int8 and fused_int8: table in outputs/demo
	@$(PY) scripts/demo.py

tables: $(STAMP) ## the papers' nine tables from the committed rows; results=outputs/results: from yours
	@$(PY) scripts/reproduce.py $(if $(results),'results=$(results)')

test: check ## lint, formatting and all tests, two processes (those marked gpu need a GPU)
	@# whole files, in the order of tests/conftest.py
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

mutants: $(STAMP) ## change the source in 100 places, count the changes that the tests notice
	@PYTHONSAFEPATH= $(PY) tests/mutants.py

check: $(STAMP) ## lint and formatting only; edits nothing
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(STAMP) ## rewrite the Python files: import order, safe fixes, formatting
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

parity: $(STAMP) ## our GGUF quantizers against ggml's own (needs cc and c++), our HPSv2 against its wheel
	@$(PY) scripts/parity_gguf.py
	@$(PY) scripts/parity_hpsv2.py

test-gpu: $(STAMP) ## only the tests marked gpu; fails where there is no GPU
	@$(PY) -c 'import torch; torch.cuda.is_available() or exit("make test-gpu: torch sees no CUDA device; run it on a machine with an NVIDIA GPU and a CUDA build of torch")'
	@$(PY) -m pytest -m gpu

clean: ## remove .venv and caches; results, outputs and checkpoints stay
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
