"""Run all benchmarks: `python -m benchmarks`, with any options of pytest and pytest-benchmark."""

import sys
from pathlib import Path

import pytest

OPTIONS = ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*", "--benchmark-only"]
COLUMNS = ["--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=name"]

sys.exit(pytest.main([str(Path(__file__).parent), *OPTIONS, *COLUMNS, *sys.argv[1:]]))
