"""`python -m da2s_fast` is `da2s`."""

import sys

from da2s_fast.cli import main

sys.exit(main())
