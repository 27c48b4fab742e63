"""`microdit-sweep status`: how far a sweep is, asked of its queue from any shell."""

from __future__ import annotations

from dataclasses import asdict

from microdit.errors import ConfigError
from sweeps.progress import status_table
from sweeps.queue import open_queue
from sweeps.secrets import masked


def status(study: str, scale: str, queue_uri: str) -> int:
    """Prints a row a trial of the study's newest plan at this scale; raises ConfigError where it was never launched."""
    name = study.removesuffix(".yaml").removesuffix(".yml").rpartition("/")[2]
    queue = open_queue(queue_uri, f"{name}/{scale}/")
    if queue is None:
        raise ConfigError(f"study '{name}' was never launched at scale '{scale}' with queue_uri={masked(queue_uri)}")
    latest = queue.latest()
    print(status_table(latest))
    states = asdict(queue.count(latest))
    print(f"\n{', '.join(f'{n} {state}' for state, n in states.items() if n)} of {len(latest)} trials ({queue.name})")
    return 0
