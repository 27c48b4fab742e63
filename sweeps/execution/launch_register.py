"""Register the processes that launch a plan.

Each launcher has an entry among the queue's attributes. It normally ends its launch's MLflow run itself. If it is
killed, the next launch or `microdit-sweep status` does so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from microdit.common.contract import Status
from microdit.common.process.identity import is_alive, is_gone, this_process
from microdit.common.stores.secrets import masked
from sweeps.execution.queue.liveness import Silence
from sweeps.execution.queue.optuna_storage import HEARTBEAT_SECONDS, SILENCE_SECONDS, open_storage
from sweeps.execution.queue.trial_queue import PLAN, Queue
from sweeps.tracking.retry import with_retries

if TYPE_CHECKING:
    from sweeps.tracking.mlflow_store import Store  # loads MLflow, which `microdit-sweep status` seldom needs

PREFIX = "launcher:"
TICK_SECONDS = HEARTBEAT_SECONDS  # between two heartbeats, and between two checks of other launchers


class Presence:
    """Register this process as a launcher of a queue.

    Args:
        store: the MLflow store of the launch.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._queue: Queue | None = None
        self._heartbeats = 0
        self._ticked = 0.0
        self._silence = Silence(SILENCE_SECONDS, longest_gap=3 * TICK_SECONDS)

    def enter(self, queue: Queue) -> None:
        """Register this process; call this before the launch's run is created."""
        self._queue = queue
        self._send_heartbeat()

    def tick(self) -> None:
        """Send a heartbeat if one is due, and end launches whose launchers have died."""
        if self._queue is not None and time.monotonic() - self._ticked > TICK_SECONDS:
            self._ticked = time.monotonic()
            self._send_heartbeat()
            found = entries(self._queue.uri)
            beats = {key: entry.get("beats") for own in found.values() for key, entry in own.items()}
            silent = self._silence.silent(beats)
            end_abandoned(self._queue.uri, self.store.uri, lambda: self.store, silent)

    def leave(self, status: str) -> None:
        """End the launch's run, unless workers or launchers of this machine still use it.

        Args:
            status: MLflow's status of the run.
        """
        if self._queue is None:
            return
        queue, self._queue = self._queue, None
        queue.requeue_dead()
        own = entries(queue.uri).get(queue.name, {})
        others = [entry for entry in own.values() if entry["process"] != this_process()]
        if queue.count().running or any(is_alive(entry["process"]) for entry in others):
            return  # keep the entry: once this process is gone, others may end the launch
        _end(self.store, queue.name, status)
        _forget(queue, [key for key, entry in own.items() if not _elsewhere(entry)])

    def _send_heartbeat(self) -> None:
        assert self._queue is not None
        self._heartbeats += 1
        digest = sha256(this_process().encode()).hexdigest()[:16]
        entry = {"process": this_process(), "store": masked(self.store.uri), "beats": self._heartbeats}
        self._queue.describe(**{f"{PREFIX}{digest}": entry})


def entries(queue_uri: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the registered launchers of each queue, by attribute key."""
    found = {}
    for study in with_retries(open_storage(queue_uri).get_all_studies):
        launchers = {key: value for key, value in study.user_attrs.items() if key.startswith(PREFIX) and value}
        if launchers:
            found[study.study_name] = launchers
    return found


def end_abandoned(
    queue_uri: str, store_uri: str, store: Callable[[], Store], silent: set[Any] | frozenset[Any] = frozenset()
) -> list[str]:
    """End the runs of abandoned launches.

    A launch is abandoned if all its launchers are gone and no trial runs.

    Args:
        queue_uri: URI of the Optuna storage.
        store_uri: URI of the MLflow store; launches of other stores are left alone.
        store: opens that store; called only if there is an abandoned launch.
        silent: keys of entries without recent heartbeats; launchers of other machines are gone if theirs is among them.

    Returns:
        The names of the queues whose launches were ended.
    """
    ended = []
    for name, own in entries(queue_uri).items():
        gone = all(_is_gone(entry, key in silent) for key, entry in own.items())
        if not gone or any(entry["store"] != masked(store_uri) for entry in own.values()):
            continue
        queue = Queue(queue_uri, name)
        queue.requeue_dead()
        if queue.tries(TrialState.RUNNING):
            continue
        count = queue.count()
        complete = count.done + count.pruned >= queue.about().get(PLAN, count.done + 1)
        _end(store(), name, Status.FINISHED if complete else Status.KILLED)
        _forget(queue, list(own))
        ended.append(name)
    return ended


def _end(store: Store, queue: str, status: str) -> None:
    for launch in store.running_launches(queue.partition("/")[0], queue):
        store.finish_launch(launch, status)


def _forget(queue: Queue, keys: list[str]) -> None:
    queue.describe(**dict.fromkeys(keys, ""))


def _is_gone(entry: Mapping[str, Any], silent: bool) -> bool:
    return is_gone(entry["process"]) or (silent and not is_alive(entry["process"]))


def _elsewhere(entry: Mapping[str, Any]) -> bool:
    identity = entry["process"]
    return not is_alive(identity) and not is_gone(identity)
