"""`python -m sweeps` is the `microdit-sweep` command."""

import sys

from sweeps.cli import main

sys.exit(main())
