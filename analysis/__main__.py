"""`python -m analysis` is `microdit-report`."""

import sys

from analysis.cli import main

if __name__ == "__main__":
    sys.exit(main())
