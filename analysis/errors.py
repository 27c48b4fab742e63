"""Define errors of a report that the user can fix.

The command prints them as one sentence without a traceback.
"""

from __future__ import annotations

from microdit.common.errors import MicroditError


class ReportError(MicroditError):
    """A report can't be made; the message names the store, study or runs, and a fix."""


class MixtureError(ReportError):
    """The selected runs are not comparable; the message lists the differing settings."""
