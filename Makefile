# make search  sets everything up and searches an architecture for scikit-learn's digits
# make test    sets everything up and runs all tests
# Setting up is done once and again only after pyproject.toml, setup.py or csrc have changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/da2s_fast.stamp
BUILD_INPUTS := pyproject.toml setup.py $(shell find csrc -type f)

.PHONY: setup search test lint format benchmark clean

setup: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: the package is compiled against the installed torch, so its build is not isolated.
$(STAMP): $(BIN)/python $(BUILD_INPUTS)
	$(BIN)/python -m pip install -q "torch>=2.10" torchvision
	$(BIN)/python -m pip install -q "setuptools>=77" ninja
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	touch $@

search: setup
	$(BIN)/da2s search --data digits --output runs/digits

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find csrc -type f | xargs $(BIN)/clang-format --dry-run -Werror

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	find csrc -type f | xargs $(BIN)/clang-format -i

benchmark: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf build dist *.egg-info da2s_fast/*.so da2s_fast/_build.json $(STAMP) \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis
