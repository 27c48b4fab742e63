"""`python -m microdit` is the `microdit` command."""

import sys

from microdit.cli.main import main

sys.exit(main())
