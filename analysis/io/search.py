"""Rebuild a search as an Optuna study in memory, from the runs in MLflow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.io.columns import param_column
from analysis.io.results import FAILED, Results
from microdit.common.contract import MINIMIZE, Outcome, SearchRange, final_metric, objective_metric

if TYPE_CHECKING:
    import optuna

DONE = "done"  # outcome of a finished run


def pareto_front(results: Results) -> list[str]:
    """Return the trials on the Pareto front of a search with several objectives.

    The best in the first objective come first. Empty for any other study.
    """
    if (study := multi_objective_study(results)) is None:
        return []
    first = 1 if study.directions[0].name == "MINIMIZE" else -1
    best = sorted(study.best_trials, key=lambda trial: (first * trial.values[0], trial.number))
    return [str(trial.user_attrs["arm"]) for trial in best]


def multi_objective_study(results: Results) -> optuna.Study | None:
    """Return the finished trials of a search with several objectives, else None."""
    columns = [objective_metric(name) for name in results.study.objectives]
    if len(columns) < 2 or not set(columns) <= set(results.frame):
        return None
    import optuna
    from optuna.study import StudyDirection
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [StudyDirection[way.upper()] for way in results.study.objectives.values()]
    study = optuna.create_study(directions=directions)
    for row in results.frame.sort_values("arm").to_dict("records"):
        values = [float(row[column]) for column in columns]
        if all(map(math.isfinite, values)):
            study.add_trial(create_trial(values=values, user_attrs={"arm": row["arm"]}))
    return study if study.trials else None


def rebuild_optuna_study(results: Results) -> optuna.Study:
    """Return a search as an Optuna study.

    Its trials have their settings and primary metric, in the order of their numbers. Pruned runs are PRUNED, diverged
    and failed ones FAIL. Runs that have not ended are left out.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {key: distribution(value) for key, value in results.study.search.items()}
    study = optuna.create_study(direction="minimize" if results.study.direction == MINIMIZE else "maximize")
    states = {Outcome.PRUNED: TrialState.PRUNED, Outcome.DIVERGED: TrialState.FAIL, FAILED: TrialState.FAIL}
    finished = results.frame.assign(outcome=DONE)
    rows = pd.concat([finished, results.others]) if len(results.others) else finished
    for row in sorted(rows.to_dict("records"), key=lambda row: str(row["arm"])):
        params = {
            key: value
            for key, kind in space.items()
            if (value := _param_value(row.get(param_column(key)), kind)) is not None
        }
        if len(params) < len(space) or row["outcome"] not in (DONE, *states):
            continue
        state = states.get(row["outcome"], TrialState.COMPLETE)
        value = float(row[final_metric(results.study.primary)]) if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=space))
    return study


def distribution(value: Any) -> optuna.distributions.BaseDistribution:
    """Return the distribution of a setting in a study's `search`.

    A list gives choices of text, a mapping a range of numbers.
    """
    from optuna import distributions

    if not isinstance(value, Mapping):
        return distributions.CategoricalDistribution([str(choice) for choice in value])
    found = SearchRange.of(value)
    return getattr(distributions, found.distribution)(**found.arguments)


def _param_value(text: Any, kind: optuna.distributions.BaseDistribution) -> Any:
    """Return the value of a run's param, which is text; None outside the space."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if text is None or (isinstance(text, float) and pd.isna(text)):
        return None
    if isinstance(kind, CategoricalDistribution):
        return str(text) if str(text) in kind.choices else None
    number = float(text)
    return int(number) if isinstance(kind, IntDistribution) else number
