"""`python -m microdit` is the `microdit` command."""

import sys

from microdit.cli import main

sys.exit(main())
