"""Change the queue in single transactions of Optuna's database, which a kill cannot split.

Optuna's public methods commit one by one. A worker killed between two of them would leave a claim without an owner,
or a failed attempt without its successor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

from microdit.common.finite import is_sound


def claim(storage: RDBStorage, trial_id: int, key: str, owner: str, attributes: Mapping[str, Any]) -> bool:
    """Mark a waiting trial as running, with its owner and a first heartbeat.

    Args:
        storage: Optuna's storage.
        trial_id: id of the trial.
        key: the user attribute that names the owner.
        owner: identity of the claiming process.
        attributes: further user attributes to set.

    Returns:
        Whether `owner` has the trial now. True also if it had it before, because a commit may succeed although its
        acknowledgement is lost.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        if trial.state != TrialState.WAITING:
            return bool(trial.state == TrialState.RUNNING and _attribute(session, trial_id, key) == owner)
        trial.state, trial.datetime_start = TrialState.RUNNING, datetime.now()
        heartbeat = models.TrialHeartbeatModel.where_trial_id(trial_id, session)
        if heartbeat is None:
            session.add(models.TrialHeartbeatModel(trial_id=trial_id))
        else:
            heartbeat.heartbeat = session.execute(sqlalchemy.func.now()).scalar()
        _note(storage, session, trial_id, {key: owner, **attributes})
    return True


def fail(
    storage: RDBStorage, study_id: int, trial_id: int, notes: Mapping[str, Any], successor: FrozenTrial | None
) -> bool:
    """End an unfinished trial as failed, and add its successor.

    Args:
        storage: Optuna's storage.
        study_id: id of the trial's study.
        trial_id: id of the trial.
        notes: user attributes to set.
        successor: the trial to add, or None.

    Returns:
        False if the trial had been finished before; nothing is changed then.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)  # serializes the numbering
        trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        if trial.state.is_finished():
            return False
        _note(storage, session, trial_id, notes)
        trial.state, trial.datetime_complete = TrialState.FAIL, datetime.now()
        if successor is not None:
            storage._get_prepared_new_trial(study_id, successor, session)
    return True


def add(storage: RDBStorage, study_id: int, key: str, successor: FrozenTrial, after: int = -1) -> bool:
    """Add a trial, unless a newer one has the same value of a user attribute.

    Args:
        storage: Optuna's storage.
        study_id: id of the study.
        key: the user attribute to compare.
        successor: the trial to add.
        after: only trials with larger ids count as newer.

    Returns:
        Whether the trial was added.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        attributes = models.TrialUserAttributeModel
        newer = (
            session.query(models.TrialModel.trial_id)
            .join(attributes, attributes.trial_id == models.TrialModel.trial_id)
            .filter(models.TrialModel.study_id == study_id, models.TrialModel.trial_id > after)
            .filter(attributes.key == key, attributes.value_json == json.dumps(successor.user_attrs[key]))
        )
        if newer.first() is not None:
            return False
        storage._get_prepared_new_trial(study_id, successor, session)
    return True


def heartbeats(storage: RDBStorage, study_id: int) -> dict[int, datetime]:
    """Return the time of the last heartbeat of each running trial that has one.

    Args:
        storage: Optuna's storage.
        study_id: id of the study.

    Returns:
        Time by the writer's clock, by trial id.
    """
    with _create_scoped_session(storage.scoped_session) as session:
        rows = (
            session.query(models.TrialHeartbeatModel.trial_id, models.TrialHeartbeatModel.heartbeat)
            .join(models.TrialModel, models.TrialModel.trial_id == models.TrialHeartbeatModel.trial_id)
            .filter(models.TrialModel.study_id == study_id, models.TrialModel.state == TrialState.RUNNING)
        )
        return dict(rows.all())


def fail_unsound(storage: RDBStorage, study_id: int, notes: Mapping[str, Any], result: str) -> int:
    """Fail completed trials with non-finite values, which earlier versions wrote.

    sqlite keeps NaN as NULL, on which Optuna fails whenever it reads the study. The values are removed.

    Args:
        storage: Optuna's storage.
        study_id: id of the study.
        notes: user attributes to set on the failed trials.
        result: a trial with this user attribute has no score on purpose, and stays completed.

    Returns:
        The number of failed trials.
    """
    found = 0
    with _create_scoped_session(storage.scoped_session) as session:
        for trial_id, state, ids, sound in _values(session, study_id):
            done = state == TrialState.COMPLETE and _attribute(session, trial_id, result) is None
            if (sound and not (done and not ids)) or (state == TrialState.COMPLETE and not done):
                continue
            session.query(models.TrialValueModel).filter(models.TrialValueModel.trial_value_id.in_(ids)).delete()
            if done:
                found += 1
                trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                trial.state = TrialState.FAIL
                _renote(session, trial_id, notes)
    return found


def _renote(session: Any, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Set user attributes of a trial that may be finished, for which Optuna's own method fails."""
    model = models.TrialUserAttributeModel
    session.query(model).filter(model.trial_id == trial_id, model.key.in_(attributes)).delete()
    session.add_all(model(trial_id=trial_id, key=key, value_json=json.dumps(v)) for key, v in attributes.items())


def _values(session: Any, study_id: int) -> list[tuple[int, TrialState, list[int], bool]]:
    """Return each trial's id, state, the ids of its value rows, and whether all of those are finite numbers."""
    trials, values = models.TrialModel, models.TrialValueModel
    rows = (
        session.query(trials.trial_id, trials.state, values.trial_value_id, values.value)
        .outerjoin(values, values.trial_id == trials.trial_id)
        .filter(trials.study_id == study_id)
    )
    found: dict[int, tuple[TrialState, list[int], list[bool]]] = {}
    for trial_id, state, value_id, value in rows.all():
        _, ids, sound = found.setdefault(trial_id, (state, [], []))
        if value_id is not None:
            ids.append(value_id)
            sound.append(is_sound(value))  # False for NULL, which stands for NaN or a marked infinity
    return [(trial_id, state, ids, all(sound)) for trial_id, (state, ids, sound) in found.items()]


def _attribute(session: Any, trial_id: int, key: str) -> Any:
    attributes = models.TrialUserAttributeModel
    row = session.query(attributes.value_json).filter(attributes.trial_id == trial_id, attributes.key == key).first()
    return None if row is None else json.loads(row[0])


def _note(storage: RDBStorage, session: Any, trial_id: int, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        storage._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, key, value)
