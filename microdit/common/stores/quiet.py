"""Keep MLflow's own messages off the terminal."""

from __future__ import annotations

import logging
import os


def quiet_mlflow(level: int) -> None:
    """Turn off MLflow's telemetry, progress bars, and messages below `level`.

    Importing mlflow sets its own log level, so call this again after the import.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(level)
