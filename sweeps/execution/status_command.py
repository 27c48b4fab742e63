"""Print the progress of a sweep, read from its queue (`microdit-sweep status`)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from microdit.common.errors import ConfigError
from microdit.common.stores.secrets import masked
from sweeps import tracking
from sweeps.execution.launch_register import end_abandoned
from sweeps.execution.progress import status_table
from sweeps.execution.queue.trial_queue import open_queue
from sweeps.tracking.uris import may_exist


def status(study: str, scale: str, queue_uri: str, uri: str, root: Path, wide: bool = False) -> int:
    """Print one row per trial of a study's newest plan, and end killed launches.

    Args:
        study: name or file of the study.
        scale: scale of the launch.
        queue_uri: URI of the Optuna storage.
        uri: URI of the MLflow store.
        root: folder of outputs.
        wide: whether to print all columns, however wide.

    Returns:
        0, the exit code.

    Raises:
        ConfigError: if the study was never launched at this scale.
    """
    name = study.removesuffix(".yaml").removesuffix(".yml").rpartition("/")[2]
    queue = open_queue(queue_uri, f"{name}/{scale}/")
    if queue is None:
        raise ConfigError(f"study '{name}' was never launched at scale '{scale}' with queue_uri={masked(queue_uri)}")
    latest = queue.latest()
    print(status_table(latest, wide))
    states = asdict(queue.count(latest))
    print(f"\n{', '.join(f'{n} {state}' for state, n in states.items() if n)} of {len(latest)} trials ({queue.name})")
    if may_exist(uri) and (ended := end_abandoned(queue_uri, uri, lambda: tracking.Store(uri, root))):
        print(f"ended in MLflow, because their launchers were killed: {', '.join(ended)}")
    return 0
