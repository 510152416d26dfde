# make search     set everything up, search an architecture for scikit-learn's digits
# make test       set everything up, run all tests
# make test-oldest  the same without GPU kernels and packaging on the oldest torch that is supported, in
#                 a copy with an environment of its own (build/oldest, 7 GB)
# make sanitize   test the C++ kernels under sanitizers; needs nothing but a compiler
# make sanitize-python  test the operators of the compiled library, torch and all, under
#                 AddressSanitizer; takes minutes
# make lint       all static checks; make format mends what can be mended
# make benchmark  time and memory of networks and operations, fused and not; takes its time
# make gpu-report write docs/gpu_meters.md and .json, the meters of the GPU kernels; needs no GPU,
#                 takes a quarter of an hour. gpu-report-check only says what got worse
# Setting up happens once, and again only after pyproject.toml, setup.py or csrc have changed.
PYTHON ?= python3
TORCH ?= torch>=2.10 torchvision
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/da2s_fast.stamp
CSRC := $(shell find csrc tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: setup search test test-oldest sanitize sanitize-python lint lint-ruff lint-format lint-mypy lint-csrc \
	format benchmark gpu-report gpu-report-check clean

setup: $(STAMP)

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) -m venv failed: on Debian and Ubuntu install python3-venv" >&2; exit 1; }

# torch first: the package is compiled against the installed torch, so its build is not isolated.
$(STAMP): pyproject.toml setup.py csrc/cpu/isa_flags.txt $(filter csrc/%,$(CSRC)) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(foreach package,$(TORCH),"$(package)")
	$(BIN)/python -m pip install --quiet "setuptools>=77" ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@touch $@

# The time in the folder's name keeps every run.
search: setup
	$(BIN)/da2s search --data digits --output runs/digits-$$(date +%Y%m%d-%H%M%S)

# A process for each processor, each with one thread: tests of several threads ask for them.
TOGETHER := -n auto --maxprocesses 8 --dist worksteal
test: export OMP_NUM_THREADS := 1
test: setup
	$(BIN)/python -m pytest $(TOGETHER)

# A copy, because the library that is compiled against that torch lies beside the sources. Without
# the GPU library, which takes nvcc longer than everything else together.
OLDEST := build/oldest
OLDEST_TORCH := torch==2.10.0 torchvision==0.25.0
OLDEST_TESTS := $(addprefix tests/,ops nn search train data report spaces commands test_cli.py)
test-oldest: export OMP_NUM_THREADS := 1
test-oldest: export DA2S_DATA ?= $(abspath ../shared/data)
test-oldest:
	mkdir -p $(OLDEST)
	find $(OLDEST) -mindepth 1 -maxdepth 1 ! -name $(VENV) -exec rm -rf {} +
	git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C $(OLDEST)
	rm -f $(OLDEST)/$(STAMP)
	CUDA_HOME=none $(MAKE) -C $(OLDEST) setup TORCH="$(OLDEST_TORCH)"
	cd $(OLDEST) && $(BIN)/python -m pytest $(TOGETHER) $(OLDEST_TESTS)

sanitize:
	$(MAKE) -C tests/csrc -j$(shell nproc 2>/dev/null || echo 2)

# Python itself is not instrumented: the runtime is loaded before it, and leaks are not told.
# Tests that start processes of their own would not find this library there. The GPU library is left
# out, as above.
ASAN := build/asan
SANITIZED_TESTS := $(addprefix tests/ops/test_,mixed_sum.py separable_conv.py conv_norm.py \
	convolutions.py discretization_loss.py cell_operator.py)
sanitize-python: setup
	for flags in CFLAGS CXXFLAGS LDFLAGS; do export $$flags="-fsanitize=address -g1"; done; \
		CUDA_HOME=none $(BIN)/python setup.py --quiet build --build-base $(ASAN) --build-lib $(ASAN)/lib
	nm -D $(ASAN)/lib/da2s_fast/_cpu.*so | grep -q __asan_init
	LD_PRELOAD="$(foreach lib,libasan.so libstdc++.so.6,$(shell $(CXX) -print-file-name=$(lib)))" \
		ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest -q --capture=no \
		-o pythonpath="$(ASAN)/lib ." -k "not instruction_sets and not portable" $(SANITIZED_TESTS)

# One target each, so that `make -k lint` runs all even if one fails.
lint: lint-ruff lint-format lint-mypy lint-csrc
lint-ruff: setup
	$(BIN)/ruff check
lint-format: setup
	$(BIN)/ruff format --check
lint-mypy: setup
	$(BIN)/mypy
lint-csrc: setup
	$(BIN)/clang-format --dry-run -Werror $(CSRC)

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CSRC)

benchmark: setup
	$(BIN)/python -m benchmarks

gpu-report: setup
	$(BIN)/python -m tests.gpu.report
gpu-report-check: setup
	$(BIN)/python -m tests.gpu.report --check

clean:
	rm -rf build dist *.egg-info da2s_fast/*.so da2s_fast/_build.json $(STAMP)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
