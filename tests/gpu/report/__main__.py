"""`python -m tests.gpu.report`: write the table of meters, or compare with it."""

import argparse
import sys

from tests.gpu.report import table
from tests.gpu.report.measure import measure


def main() -> int:
    """With --check nothing is written, and what got worse makes the exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a meter got worse")
    check = parser.parse_args().check
    committed = table.load() if check else {}
    report = measure()
    if not check:
        table.save(report)
        return 0
    found = table.all_worse(committed, report)
    for line in found:
        print(line, file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
