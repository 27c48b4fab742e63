"""Keep MLflow's own messages off the terminal."""

from __future__ import annotations

import logging
import os


def quiet_mlflow(level: int) -> None:
    """Turn off MLflow's telemetry, progress bars and less important messages.

    Importing mlflow sets its own log level, so call this again after the import.

    Args:
        level: of `logging`; messages below it are not printed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(level)
