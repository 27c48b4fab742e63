"""The study's queue in Optuna: every trial waits there, workers claim one after another, and none is ever lost.

A trial of Optuna carries all that a worker needs as user attributes (`ORDER`: its place in the plan, its resolved
configuration, ...), so that a worker on another machine needs the two storage URLs and nothing else. A claim that dies
with its worker is failed and queued again: at once where the worker's process is known to be gone from this machine,
after a minute without a heartbeat elsewhere. The heartbeat is Optuna's own (`sweeps.storage`).
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from sweeps.patience import patiently
from sweeps.secrets import masked
from sweeps.storage import BEAT, open_storage
from sweeps.uris import is_there

ORDER = "order"  # the trial's place in the plan; its tries share it
WORKER = "worker"  # host/pid/start of who claimed it
HALT = "halt"  # of the study: no more trials are handed out, and why
FINAL = "given_up"  # a failure that is not tried again by this launch
LAUNCH = "launch"  # of the study: what workers must know besides
DEAD = "its worker died (killed, or out of memory?)"
HOPELESS_AT = 5  # interruptions in a row without a step of progress after which a trial has failed
LIVE = (TrialState.WAITING, TrialState.RUNNING)
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
STATES = {  # what a user reads
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "failed",
}


def myself() -> str:
    """`host/pid/start` of this process: a pid alone may have been given to another process since."""
    process = psutil.Process()
    return f"{platform.node()}/{process.pid}/{process.create_time():.0f}"


def is_gone(worker: str) -> bool:
    """Whether `worker` is a process of this machine that has ended; False where that can't be known from here."""
    host, pid, start = worker.rsplit("/", 2)
    if host != platform.node():
        return False
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(start)) > 2 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@dataclass(frozen=True)
class Count:
    """How far a plan is, by trials of the plan (not tries); named as in `STATES`."""

    done: int = 0
    pruned: int = 0
    running: int = 0
    waiting: int = 0
    failed: int = 0


class Queue:
    """The trials of one plan; all methods are safe beside other processes, and wait out a store that is away."""

    def __init__(self, uri: str, name: str, directions: Sequence[Any] = ("minimize",)) -> None:
        self.uri, self.name = uri, name
        self.study = patiently(
            optuna.create_study,
            storage=open_storage(uri, lambda study, attempt: _queue_again(study, attempt, {})),
            study_name=name,
            directions=list(directions),
            load_if_exists=True,
        )
        self.storage: Any = self.study._storage  # Optuna's cache over it: it re-reads only what is not finished
        self._id = patiently(self.storage.get_study_id_from_name, name)
        self._looked, self._judge_from = math.inf, 0.0  # when this process last saw the queue; see `_was_blind`

    def describe(self, **attributes: Any) -> None:
        """Keeps facts on the study itself."""
        for key, value in attributes.items():
            patiently(self.study.set_user_attr, key, value)

    def about(self) -> dict[str, Any]:
        return dict(patiently(self.storage.get_study_user_attrs, self._id))

    def tries(self, *states: TrialState) -> list[FrozenTrial]:
        """All tries (in `states`), oldest first."""
        return patiently(self.storage.get_all_trials, self._id, deepcopy=False, states=states or None)

    def latest(self) -> dict[int, FrozenTrial]:
        """Of each trial of the plan the try that counts: one that ended well, else one that lives, else the newest."""
        best: dict[int, FrozenTrial] = {}
        rank = {**dict.fromkeys(ENDED, 2), **dict.fromkeys(LIVE, 1)}
        for attempt in self.tries():
            order = attempt.user_attrs.get(ORDER)
            if order is None:
                continue
            known = best.get(order)
            if known is None or rank.get(attempt.state, 0) >= rank.get(known.state, 0):
                best[order] = attempt
        return best

    def count(self, latest: Mapping[int, FrozenTrial] | None = None) -> Count:
        tries = (self.latest() if latest is None else latest).values()
        number = {STATES[state]: sum(t.state == state for t in tries) for state in STATES}
        return Count(**number)

    def fill(self, planned: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any]]], again: bool = True) -> None:
        """Queues each planned trial (order -> fixed parameters, user attributes) that is not there.

        Where `again`, trials that have failed for good are queued once more, as a new launch asks for. Trials whose
        worker died between failing and queueing them again are mended here too.
        """
        latest = self.latest()
        for order, (params, attributes) in planned.items():
            known = latest.get(order)
            if known is None:
                patiently(self.study.enqueue_trial, dict(params), user_attrs={**attributes, ORDER: order})
            elif known.state == TrialState.FAIL and (again or not known.user_attrs.get(FINAL)):
                _queue_again(self.study, known, {"failures": 0, "interruptions": 0} if again else {})

    def settle(
        self, order: int, params: Mapping[str, Any], values: Sequence[float], attributes: Mapping[str, Any]
    ) -> None:
        """Adds a trial that needn't run, finished, unless it is there already."""
        known = self.latest().get(order)
        if known is not None and known.state in ENDED:
            return
        if known is not None and known.state == TrialState.WAITING:
            self._end(known._trial_id, TrialState.FAIL)
        choices = self.about()["choices"]
        trial = optuna.create_trial(
            params=dict(params),
            distributions={name: optuna.distributions.CategoricalDistribution(choices[name]) for name in params},
            values=list(values),
            user_attrs={**attributes, ORDER: order},
        )
        patiently(self.study.add_trial, trial)

    def claim(self, before: Callable[[int], None] = lambda number: None) -> Trial | None:
        """The first waiting trial of the plan, now running in this process; None where none waits.

        `before` is told its number while its sampler can still be chosen.
        """
        for attempt in sorted(self.tries(TrialState.WAITING), key=lambda t: (t.user_attrs.get(ORDER, 0), t.number)):
            number = attempt._trial_id
            try:
                patiently(self.storage.record_heartbeat, number)  # first: a claim without one could never go stale
                if not patiently(self.storage.set_trial_state_values, number, TrialState.RUNNING):
                    continue
            except UpdateFinishedTrialError:
                continue
            self.note(number, **{WORKER: myself(), "progress": {}})
            before(attempt.number)
            return patiently(Trial, self.study, number)
        return None

    def beat(self, trial_id: int) -> bool:
        """Tells that this process still works on it; False where the trial was taken away meanwhile."""
        self.storage.record_heartbeat(trial_id)
        found = self.storage.get_trial(trial_id)
        return found.state == TrialState.RUNNING and found.user_attrs.get(WORKER) == myself()

    def note(self, trial_id: int, **attributes: Any) -> None:
        for key, value in attributes.items():
            patiently(self.storage.set_trial_user_attr, trial_id, key, value)

    def complete(self, trial: Trial, values: Sequence[float]) -> None:
        self._end(trial._trial_id, TrialState.COMPLETE, values)

    def prune(self, trial: Trial) -> None:
        """Ends it as PRUNED, its value the last that it reported."""
        reported = patiently(self.storage.get_trial, trial._trial_id).intermediate_values
        last = [reported[max(reported)]] if reported and len(self.study.directions) == 1 else None
        self._end(trial._trial_id, TrialState.PRUNED, last)

    def fail(self, trial: Trial, words: str, retry: bool) -> None:
        """Ends it as failed; where `retry`, it is queued again."""
        self.note(trial._trial_id, error=masked(words), **{FINAL: not retry})
        if self._end(trial._trial_id, TrialState.FAIL) and retry:
            frozen = patiently(self.storage.get_trial, trial._trial_id)
            _queue_again(self.study, frozen, {"failures": frozen.user_attrs.get("failures", 0) + 1})

    def release(self, trial: Trial, words: str) -> None:
        """Gives a claimed trial back to the queue: it goes on from its checkpoint in whoever claims it next."""
        self.note(trial._trial_id, error=words)
        if self._end(trial._trial_id, TrialState.FAIL):
            _queue_again(self.study, patiently(self.storage.get_trial, trial._trial_id), {})

    def free_the_dead(self) -> list[tuple[FrozenTrial, bool]]:
        """Queues trials again whose workers are gone; returns those that this call found on this machine, each with
        whether it was given up instead."""
        found = []
        for attempt in self.tries(TrialState.RUNNING):
            worker = attempt.user_attrs.get(WORKER)  # absent for the moment between claim and signature
            if worker is not None and is_gone(worker):
                hopeless = self._interrupted(attempt)
                found += [] if hopeless is None else [(attempt, hopeless)]
        if not self._was_blind():
            patiently(fail_stale_trials, self.study)
        return found

    def _was_blind(self) -> bool:
        """Whether the queue was out of this process' sight until now: then others could not beat either, and have two
        beats' time to before their silence counts."""
        now = time.monotonic()
        if now - self._looked > 2 * BEAT:
            self._judge_from = now + 2 * BEAT
        self._looked = now
        return now < self._judge_from

    def _interrupted(self, attempt: FrozenTrial) -> bool | None:
        """Fails a try whose worker died and queues it again; True where it has died too often at the same step and is
        given up, None where another process was faster."""
        reached = int(attempt.user_attrs.get("progress", {}).get("step", 0))
        before = int(attempt.user_attrs.get("reached", 0))
        deaths = 1 if reached > before else int(attempt.user_attrs.get("interruptions", 0)) + 1
        hopeless = deaths > HOPELESS_AT
        self.note(attempt._trial_id, error=DEAD, **{FINAL: hopeless})
        if not self._end(attempt._trial_id, TrialState.FAIL):
            return None
        if not hopeless:
            _queue_again(self.study, attempt, {"interruptions": deaths, "reached": max(reached, before)})
        return hopeless

    def _end(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """False where another process has ended it before."""
        try:
            return bool(patiently(self.storage.set_trial_state_values, trial_id, state, values))
        except UpdateFinishedTrialError:
            return False


def _queue_again(study: optuna.Study, attempt: FrozenTrial, changes: Mapping[str, Any]) -> None:
    """A waiting copy of a try that has ended: the same parameters, the facts of the plan, and `changes`."""
    fresh = patiently(study._storage.get_trial, attempt._trial_id)
    kept = {k: v for k, v in fresh.user_attrs.items() if k not in (WORKER, "progress", FINAL, "error")}
    trial = optuna.create_trial(
        state=TrialState.WAITING,
        params=fresh.params,
        distributions=fresh.distributions,
        user_attrs={**kept, "tries": kept.get("tries", 1) + 1, **changes},
        system_attrs=fresh.system_attrs,
        intermediate_values=fresh.intermediate_values,
    )
    patiently(study.add_trial, trial)


def open_queue(uri: str, prefix: str) -> Queue | None:
    """The newest queue whose name begins with `prefix`; None where there is none."""
    if not is_there(uri):
        return None
    found = [s for s in patiently(open_storage(uri).get_all_studies) if s.study_name.startswith(prefix)]
    return Queue(uri, max(found, key=lambda s: s._study_id).study_name) if found else None
