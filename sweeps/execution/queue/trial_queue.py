"""Queue the trials of a study in Optuna: workers claim them one by one, and none is lost.

The user attributes of an Optuna trial hold all that a worker needs, such as its index in the plan and its resolved
configuration, so a worker on another machine needs only the two storage URIs. If a worker dies, its trial is failed and
queued again: at once if its process has provably ended (`microdit.common.process.identity`), otherwise after a minute
without a new heartbeat (`liveness`). Changes that a kill must not split are single transactions (`transactions`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from microdit.common.finite import is_sound, require_sound
from microdit.common.process.identity import is_gone, this_process
from microdit.common.stores.secrets import masked
from sweeps.execution.queue import transactions
from sweeps.execution.queue.liveness import Silence
from sweeps.execution.queue.optuna_storage import HEARTBEAT_SECONDS, SILENCE_SECONDS, open_storage
from sweeps.tracking.retry import with_retries
from sweeps.tracking.uris import may_exist

PLAN_INDEX_KEY = "order"  # the trial's index in the plan, shared by its attempts
WORKER = "worker"  # identity of the process that claimed it
STOP_KEY = "halt"  # of the study: the reason why no more trials are claimed
GIVEN_UP_KEY = "given_up"  # a failure that this launch does not retry
PLAN = "plan"  # of the study: number of trials
LAUNCH = "launch"  # of the study: its LaunchSpec
DEAD = "its worker died (killed, or out of memory?)"
SILENT = f"its worker has sent no heartbeat for {SILENCE_SECONDS} s"
OUTCOME = "outcome"  # an ending without a score that counts as a result, such as "diverged"
UNSOUND = "its score was stored as NaN or infinity"
MAX_STALLED_INTERRUPTIONS = 5  # in a row without progress, after which a trial has failed
LIVE = (TrialState.WAITING, TrialState.RUNNING)
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
STATES = {  # names for users
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class Count:
    """Numbers of trials of a plan per state, named as in `STATES`."""

    done: int = 0
    pruned: int = 0
    running: int = 0
    waiting: int = 0
    failed: int = 0


class Queue:
    """The trials of one plan.

    All methods are safe with several processes, and are retried while a store is unreachable.

    Args:
        uri: URI of the Optuna storage.
        name: name of the queue; it is created if it is missing.
        directions: "minimize" or "maximize" for each objective.
    """

    def __init__(self, uri: str, name: str, directions: Sequence[Any] = ("minimize",)) -> None:
        self.uri, self.name = uri, name
        self._database = open_storage(uri)
        self.study = with_retries(
            optuna.create_study,
            storage=self._database,
            study_name=name,
            directions=list(directions),
            load_if_exists=True,
        )
        self.storage: Any = self.study._storage  # Optuna's cache, which re-reads only unfinished trials
        self._id = with_retries(self.storage.get_study_id_from_name, name)
        notes = {"error": UNSOUND, GIVEN_UP_KEY: True}
        with_retries(transactions.fail_unsound, self._database, self._id, notes, OUTCOME)
        self._silence = Silence(SILENCE_SECONDS, longest_gap=2 * HEARTBEAT_SECONDS)

    def describe(self, **attributes: Any) -> None:
        """Store attributes of the whole queue."""
        for key, value in attributes.items():
            with_retries(self.study.set_user_attr, key, value)

    def about(self) -> dict[str, Any]:
        """Return the attributes that `describe` stored."""
        return dict(with_retries(self.storage.get_study_user_attrs, self._id))

    def tries(self, *states: TrialState) -> list[FrozenTrial]:
        """Return all attempts in `states`, oldest first; in any state if none is given."""
        return with_retries(self.storage.get_all_trials, self._id, deepcopy=False, states=states or None)

    def latest(self) -> dict[int, FrozenTrial]:
        """Return the decisive attempt of each trial, by index in the plan.

        This is a successful attempt, else an unfinished one, else the newest.
        """
        best: dict[int, FrozenTrial] = {}
        rank = {**dict.fromkeys(ENDED, 2), **dict.fromkeys(LIVE, 1)}
        for attempt in self.tries():
            order = attempt.user_attrs.get(PLAN_INDEX_KEY)
            if order is None:
                continue
            known = best.get(order)
            if known is None or rank.get(attempt.state, 0) >= rank.get(known.state, 0):
                best[order] = attempt
        return best

    def count(self, latest: Mapping[int, FrozenTrial] | None = None) -> Count:
        """Return the number of trials in each state.

        Args:
            latest: what the method `latest` has returned; None calls it.
        """
        tries = (self.latest() if latest is None else latest).values()
        found = Counter(STATES[TrialState.COMPLETE if OUTCOME in t.user_attrs else t.state] for t in tries)
        return Count(**found)

    def fill(self, planned: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any]]], again: bool = True) -> None:
        """Queue each planned trial that is missing.

        Args:
            planned: fixed parameters and user attributes of each trial, by index in the plan.
            again: whether to queue trials that have finally failed once more, as for a new launch.
        """
        latest = self.latest()
        for order, (params, attributes) in planned.items():
            known = latest.get(order)
            if known is None:
                fixed, facts = {"fixed_params": dict(params)}, {**attributes, PLAN_INDEX_KEY: order}
                trial = optuna.create_trial(state=TrialState.WAITING, system_attrs=fixed, user_attrs=facts)
                self._add(trial)
            elif known.state == TrialState.FAIL and again:
                self._add(_successor(known, {"failures": 0, "interruptions": 0}), known)
        self.requeue_orphans()

    def requeue_orphans(self) -> bool:
        """Queue failed trials whose worker or launcher died before it could queue them.

        Their last attempt has failed, is not marked as given up, and has no successor.

        Returns:
            Whether there were any.
        """
        found = False
        for known in self.latest().values():
            if known.state != TrialState.FAIL or known.user_attrs.get(GIVEN_UP_KEY):
                continue
            failures = known.user_attrs.get("failures", 0)
            failed = GIVEN_UP_KEY in known.user_attrs and known.user_attrs.get("error") not in (DEAD, SILENT)
            found |= self._add(_successor(known, {"failures": failures + 1} if failed else {}), known)
        return found

    def add_finished(
        self, order: int, params: Mapping[str, Any], values: Sequence[float], attributes: Mapping[str, Any]
    ) -> None:
        """Add a trial as finished, unless the queue has it finished already.

        Args:
            order: the trial's index in the plan.
            params: value of each parameter.
            values: value of each objective.
            attributes: user attributes.
        """
        known = self.latest().get(order)
        if known is not None and known.state in ENDED:
            return
        choices = self.about()["choices"]
        trial = optuna.create_trial(
            params=dict(params),
            distributions={name: optuna.distributions.CategoricalDistribution(choices[name]) for name in params},
            values=list(values),
            user_attrs={**attributes, PLAN_INDEX_KEY: order},
        )
        if known is not None and known.state == TrialState.WAITING:
            with_retries(transactions.fail, self._database, self._id, known._trial_id, {}, trial)
        elif known is None or known.state == TrialState.FAIL:
            self._add(trial, known)
        else:
            with_retries(self.study.add_trial, trial)

    def claim(self, before: Callable[[int], None] = lambda number: None) -> Trial | None:
        """Claim the first waiting trial of the plan for this process.

        Args:
            before: called with the trial's number before the sampler is used.

        Returns:
            The trial, or None if none waits.
        """
        claimed = self._claim(before)
        return self._claim(before) if claimed is None and self.requeue_orphans() else claimed

    def _claim(self, before: Callable[[int], None]) -> Trial | None:
        for attempt in sorted(
            self.tries(TrialState.WAITING), key=lambda t: (t.user_attrs.get(PLAN_INDEX_KEY, 0), t.number)
        ):
            number, signature = attempt._trial_id, this_process()
            if with_retries(transactions.claim, self._database, number, WORKER, signature, {"progress": {}}):
                before(attempt.number)
                return with_retries(Trial, self.study, number)
        return None

    def send_heartbeat(self, trial_id: int) -> bool:
        """Record a heartbeat of a trial.

        Args:
            trial_id: Optuna's id of the trial.

        Returns:
            False if this process no longer owns the trial.
        """
        self.storage.record_heartbeat(trial_id)
        found = self.storage.get_trial(trial_id)
        return found.state == TrialState.RUNNING and found.user_attrs.get(WORKER) == this_process()

    def note(self, trial_id: int, **attributes: Any) -> None:
        """Set user attributes of a trial.

        Args:
            trial_id: Optuna's id of the trial.
            **attributes: value of each attribute, which JSON can store.
        """
        for key, value in attributes.items():
            with_retries(self.storage.set_trial_user_attr, trial_id, key, value)

    def complete(self, trial: Trial, values: Sequence[float]) -> None:
        """End the trial with its values.

        Args:
            trial: a trial that this process has claimed.
            values: value of each objective.

        Raises:
            DivergenceError: if a value is not finite.
        """
        require_sound({f"value {number}": value for number, value in enumerate(values)}, "of a finished trial")
        self._end(trial._trial_id, TrialState.COMPLETE, values)

    def prune(self, trial: Trial, outcome: str = "") -> None:
        """End the trial as pruned, with its last reported value if that is finite.

        Args:
            trial: a trial that this process has claimed.
            outcome: an ending such as "diverged", which is stored instead of a value; "" for a pruned trial.
        """
        reported = with_retries(self.storage.get_trial, trial._trial_id).intermediate_values
        last = reported[max(reported)] if reported and len(self.study.directions) == 1 and not outcome else None
        if outcome:
            self.note(trial._trial_id, **{OUTCOME: outcome})
        self._end(trial._trial_id, TrialState.PRUNED, [last] if last is not None and is_sound(last) else None)

    def fail(self, trial: Trial, reason: str, retry: bool) -> None:
        """End the trial as failed.

        Args:
            trial: a trial that this process has claimed.
            reason: the error, which is stored without passwords.
            retry: whether to queue the trial again.
        """
        known = with_retries(self.storage.get_trial, trial._trial_id)
        again = _successor(known, {"failures": known.user_attrs.get("failures", 0) + 1}) if retry else None
        self._fail(known, reason, again)

    def release(self, trial: Trial, reason: str) -> None:
        """Return a claimed trial to the queue.

        The next worker resumes from its checkpoint.

        Args:
            trial: a trial that this process has claimed.
            reason: why this process does not train it.
        """
        known = with_retries(self.storage.get_trial, trial._trial_id)
        self._fail(known, reason, _successor(known, {}))

    def requeue_dead(self) -> list[tuple[FrozenTrial, str, bool]]:
        """Queue the trials of dead workers again.

        Returns:
            The attempts that this call failed, each with the reason and whether its trial was given up instead.
        """
        found = []
        running = self.tries(TrialState.RUNNING)
        beats = with_retries(transactions.heartbeats, self._database, self._id)
        signs = {t._trial_id: (t.user_attrs.get(WORKER), beats.get(t._trial_id)) for t in running}
        silent = self._silence.silent(signs)
        for attempt in running:
            gone = is_gone(attempt.user_attrs.get(WORKER, ""))
            if gone or attempt._trial_id in silent:
                why = DEAD if gone else SILENT
                given_up = self._interrupted(attempt, why)
                found += [] if given_up is None else [(attempt, why, given_up)]
        self.requeue_orphans()
        return found

    def _interrupted(self, attempt: FrozenTrial, why: str) -> bool | None:
        """Fail an attempt whose worker died, and queue its trial again.

        Returns:
            True if it has died too often at the same step and is given up, None if another process was faster.
        """
        reached = int(attempt.user_attrs.get("progress", {}).get("step", 0))
        before = int(attempt.user_attrs.get("reached", 0))
        deaths = 1 if reached > before else int(attempt.user_attrs.get("interruptions", 0)) + 1
        given_up = deaths > MAX_STALLED_INTERRUPTIONS
        changes = {"interruptions": deaths, "reached": max(reached, before)}
        ended = self._fail(attempt, why, None if given_up else _successor(attempt, changes))
        return given_up if ended else None

    def _fail(self, attempt: FrozenTrial, reason: str, successor: FrozenTrial | None) -> bool:
        """End an unfinished attempt and queue its successor; return False if another process has ended it."""
        notes = {"error": masked(reason), GIVEN_UP_KEY: successor is None}
        return with_retries(transactions.fail, self._database, self._id, attempt._trial_id, notes, successor)

    def _add(self, trial: FrozenTrial, after: FrozenTrial | None = None) -> bool:
        """Add an attempt of a trial, unless another process has added one newer than `after`."""
        last = -1 if after is None else after._trial_id
        return with_retries(transactions.add, self._database, self._id, PLAN_INDEX_KEY, trial, last)

    def _end(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End an attempt; return False if another process has ended it before."""
        try:
            return bool(with_retries(self.storage.set_trial_state_values, trial_id, state, values))
        except UpdateFinishedTrialError:
            return False


def _successor(attempt: FrozenTrial, changes: Mapping[str, Any]) -> FrozenTrial:
    """Return a waiting copy of an attempt: same parameters, the plan's attributes, and `changes`."""
    kept = {k: v for k, v in attempt.user_attrs.items() if k not in (WORKER, "progress", GIVEN_UP_KEY, "error")}
    return optuna.create_trial(
        state=TrialState.WAITING,
        params=attempt.params,
        distributions=attempt.distributions,
        user_attrs={**kept, "tries": kept.get("tries", 1) + 1, **changes},
        system_attrs=attempt.system_attrs,
        intermediate_values=attempt.intermediate_values,
    )


def open_queue(uri: str, prefix: str) -> Queue | None:
    """Return the newest queue whose name begins with `prefix`, or None.

    Args:
        uri: URI of the Optuna storage; a missing sqlite file is not created.
        prefix: such as `masking_ratio/demo/`.
    """
    if not may_exist(uri):
        return None
    found = [s for s in with_retries(open_storage(uri).get_all_studies) if s.study_name.startswith(prefix)]
    return Queue(uri, max(found, key=lambda s: s._study_id).study_name) if found else None
