"""Test non-finite scores: never written to a store, and read as failures if another version wrote them."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from launching import claimed
from optuna.trial import TrialState

from microdit.common.errors import DivergenceError
from sweeps.execution.launch_spec import LaunchSpec
from sweeps.execution.progress import best_of, status_table
from sweeps.execution.queue.trial_queue import Queue
from sweeps.execution.status_command import status
from sweeps.tracking.mlflow_logger import MlflowLogger

NAME = "masking_ratio/smoke/0123"


def attributes(number: int) -> dict[str, Any]:
    return {"name": f"arm{number}/seed0", "steps": 10, "key": str(number), "arm": f"arm{number}", "seed": 0}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'queue.db'}"


@pytest.fixture
def queue(uri: str) -> Queue:
    """Return a queue in which one trial waits."""
    queue = Queue(uri, NAME)
    queue.fill({0: ({}, attributes(0))})
    return queue


def test_a_study_with_a_stored_nan_is_readable_and_names_the_trial(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Optuna's own client writes NaN, which sqlite keeps as NULL: Optuna then fails whenever it reads the study."""
    study = optuna.create_study(storage=uri, study_name=NAME)
    for number, value in enumerate((1.0, math.nan, math.inf, 2.0)):
        study.add_trial(
            optuna.create_trial(state=TrialState.WAITING, user_attrs={**attributes(number), "order": number})
        )
        storage = study._storage
        storage.set_trial_state_values(number + 1, TrialState.RUNNING)
        storage.set_trial_state_values(number + 1, TrialState.COMPLETE, [value])
    with closing(sqlite3.connect(tmp_path / "queue.db")) as database:
        assert database.execute("SELECT count(*) FROM trial_values WHERE value IS NULL").fetchone() == (2,)
    with pytest.raises(AssertionError):
        optuna.load_study(study_name=NAME, storage=uri).trials  # noqa: B018 - the fault that is worked around
    assert status("masking_ratio", "smoke", uri, f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith("arm")}
    assert [name for name, line in rows.items() if "failed" in line] == ["arm1/seed0", "arm2/seed0"]
    assert "NaN or infinity" in rows["arm1/seed0"]
    assert "2 done, 2 failed of 4 trials" in out
    queue = Queue(uri, NAME)
    assert queue.study.best_value == 1.0
    queue.fill({number: ({}, attributes(number)) for number in range(4)})
    assert queue.count().waiting == 2, "a new launch tries them again"


def test_a_completed_trial_without_any_value_has_failed(queue: Queue, tmp_path: Path) -> None:
    trial = claimed(queue)
    queue.complete(trial, [1.0])
    with closing(sqlite3.connect(tmp_path / "queue.db")) as database:
        database.execute("DELETE FROM trial_values")
        database.commit()
    assert Queue(queue.uri, NAME).count().failed == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.7976931348623157e308])
def test_the_queue_rejects_non_finite_scores(queue: Queue, tmp_path: Path, value: float) -> None:
    trial = claimed(queue)
    with pytest.raises(DivergenceError, match="only finite numbers"):
        queue.complete(trial, [value])
    with closing(sqlite3.connect(tmp_path / "queue.db")) as database:
        assert database.execute("SELECT count(*) FROM trial_values").fetchone() == (0,)


@pytest.mark.parametrize("reported", [math.nan, math.inf])
def test_a_pruned_trial_stores_no_non_finite_value(queue: Queue, reported: float) -> None:
    trial = claimed(queue)
    trial.report(0.5, 1)
    trial.report(reported, 2)
    queue.prune(trial)
    [known] = Queue(queue.uri, NAME).tries()
    assert (known.state, known.values) == (TrialState.PRUNED, None)


def test_a_diverged_result_has_no_value_and_counts_as_done(queue: Queue) -> None:
    trial = claimed(queue)
    queue.prune(trial, "diverged")
    again = Queue(queue.uri, NAME)
    assert again.count().done == 1
    assert "diverged" in status_table(again.latest())
    assert again.tries()[0].values is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_launchs_objectives_reject_every_non_finite_score(value: float) -> None:
    spec = LaunchSpec("", "", "", "s", "smoke", "s.yaml", "", "", "", objectives=("clip_fd",))
    with pytest.raises(DivergenceError, match=r"final/fd is (nan|inf|-inf)"):
        spec.values({"final/clip_fd": 1.0, "final/fd": value})


@pytest.mark.parametrize("name", ["train/loss", "val/loss", "final/clip_fd", "grad_norm"])
def test_the_logger_writes_no_such_number_to_mlflow(name: str) -> None:
    written: list[Any] = []
    recorder = MlflowLogger.__new__(MlflowLogger)
    recorder._client = SimpleNamespace(log_batch=lambda *a, **k: written.append(k))
    recorder._seen, recorder._buffer, recorder._on_metrics, recorder._flushed = {}, [], None, 0.0
    recorder.run_id = "run"
    with pytest.raises(DivergenceError, match=f"{name} is nan at step 7"):
        recorder.metrics(7, {"lr": 0.1, name: math.nan})
    assert not written
    assert not recorder._buffer


def test_a_trial_with_a_nan_score_is_never_the_best() -> None:
    tries = [
        optuna.create_trial(value=0.0, user_attrs={**attributes(0), "final": {"final/fd": math.nan}}),
        optuna.create_trial(value=0.0, user_attrs={**attributes(1), "final": {"final/fd": 3.0}}),
    ]
    assert best_of(tries, "final/fd", lower=True).startswith("arm1/seed0 3")
