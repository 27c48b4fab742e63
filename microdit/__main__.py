"""Run the `microdit` command as `python -m microdit`."""

import sys

from microdit.cli.main import main

sys.exit(main())
