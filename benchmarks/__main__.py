"""Run all benchmarks: `python -m benchmarks`, with any options of pytest and pytest-benchmark.

Most useful: -k NAME selects (super_network, torch_compile, mixed_op, ...), --rounds and --batch
shorten, --compile-limit 0 leaves out torch.compile, --tables FILE and --benchmark-json FILE keep
the results.
"""

import sys
from pathlib import Path

import pytest

OPTIONS = ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*", "--benchmark-only"]
COLUMNS = ["--benchmark-columns=min,median,iqr,rounds", "--benchmark-sort=name"]
# The small operators are many, and sure within a third of a second each.
SHORT = ["--benchmark-max-time=0.3"]

if __name__ == "__main__":  # processes that measure a row import this module again
    sys.exit(pytest.main([str(Path(__file__).parent), *OPTIONS, *COLUMNS, *SHORT, *sys.argv[1:]]))
