"""Test the Optuna study that is rebuilt from the runs of a search, and its figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from planted import results

from analysis.figures.cost import cost_figure
from analysis.figures.search import search_figures
from analysis.io.results import Results
from analysis.io.search import distribution, pareto_front, rebuild_optuna_study
from analysis.report.sentences import comparison_sentences

SPACE = {
    "optimizer.weight_decay": {"low": 1.0e-3, "high": 1.0, "log": True},
    "model.depth": {"low": 2, "high": 8},
    "model.ffn.type": ["swiglu", "gelu"],
}
COUNT = 12


def searched(space: dict[str, Any] = SPACE, direction: str = "minimize") -> Results:
    """Return twelve trials whose score is their depth: 3 pruned, 5 failed, 7 running."""
    rng = np.random.default_rng(0)
    arms: dict[str, dict[str, Any]] = {f"trial_{number:03d}": {"depth": 8 - number % 7} for number in range(COUNT)}
    found = results("a_search", arms, lambda s: 10.0 * s["depth"], seeds=1, noise=0.01, metrics=["clip_fd"])
    frame = found.frame.assign(**{"tag.samples": "64", "tag.device": "cpu"})
    values = {
        "optimizer.weight_decay": [repr(float(v)) for v in 10 ** rng.uniform(-3, 0, COUNT)],
        "model.depth": [str(settings["depth"]) for settings in arms.values()],
        "model.ffn.type": ["swiglu", "gelu"] * (COUNT // 2),
    }
    frame = frame.assign(**{f"param.{key}": values[key] for key in space})
    outcome = {3: "pruned", 5: "failed", 7: "running"}
    others = frame.iloc[list(outcome)].drop(columns="final/clip_fd").assign(outcome=list(outcome.values()))
    study = dataclasses.replace(found.study, search=space, direction=direction, x="trial", question="Which depth?")
    return dataclasses.replace(found, study=study, frame=frame.drop(list(outcome)), others=others)


def test_the_study_is_the_runs_of_the_store() -> None:
    found = searched()
    study = rebuild_optuna_study(found)
    states = [trial.state for trial in study.trials]
    assert [states.count(s) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)] == [9, 1, 1]
    done = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert [trial.value for trial in done] == found.frame["final/clip_fd"].tolist()
    assert [trial.params["model.depth"] for trial in done] == [8, 7, 6, 4, 2, 7, 6, 5, 4]
    assert done[0].params["optimizer.weight_decay"] == float(found.frame["param.optimizer.weight_decay"].iloc[0])
    assert study.trials[3].params["model.ffn.type"] == "gelu"
    assert study.best_trial.number == 6
    assert rebuild_optuna_study(searched(direction="maximize")).best_trial.params["model.depth"] == 8


def test_distributions_match_the_study_file() -> None:
    assert distribution(SPACE["optimizer.weight_decay"]) == FloatDistribution(1e-3, 1.0, log=True)
    assert distribution(SPACE["model.depth"]) == IntDistribution(2, 8)
    assert distribution({"low": 0.0, "high": 1, "step": 0.25}) == FloatDistribution(0.0, 1.0, step=0.25)
    assert distribution([1, True]) == CategoricalDistribution(["1", "True"])


def test_the_three_figures_show_values_settings_and_importances() -> None:
    found, before = searched(), dict(mpl.rcParams)
    figures = search_figures(found)
    assert list(figures) == ["search_history", "search_parallel", "search_importances"]
    assert dict(mpl.rcParams) == before, "Optuna's style stays with Optuna"
    (history,) = figures["search_history"].axes
    best = history.lines[0]
    falling = np.minimum.accumulate(found.frame["final/clip_fd"])
    assert list(dict.fromkeys(best.get_ydata())) == pytest.approx(list(dict.fromkeys(falling)))
    assert best.get_ydata()[-1] == found.frame["final/clip_fd"].min()
    words = [text.get_text() for text in figures["search_history"].legends[0].get_texts()]
    assert words == ["final value of a trial", "best so far", "pruned (1)", "diverged or failed (1)"]
    assert "9 of 11 trials finished" in figures["search_history"].get_suptitle()
    parallel = figures["search_parallel"].axes[0]
    ticks = [text.get_text().replace("\n", " ") for text in parallel.get_xticklabels()]
    assert ticks == ["CLIP-FD ↓", "depth", "ffn type", "optimizer weight decay"]
    assert len(parallel.collections[0].get_segments()) == 9
    (importances,) = figures["search_importances"].axes
    bars = [bar.get_width() for bar in importances.patches]
    assert len(bars) == 3
    names = [text.get_text() for text in importances.get_yticklabels()]
    assert names[int(np.argmax(bars))] == "depth", "the one that the score was made of"


def test_one_setting_has_no_importances_and_a_study_of_arms_no_search() -> None:
    one = searched({"optimizer.weight_decay": SPACE["optimizer.weight_decay"]})
    assert list(search_figures(one)) == ["search_history", "search_parallel"]
    assert search_figures(results("s", {"a": {}, "b": {}}, lambda s: 0.0)) == {}
    few = dataclasses.replace(one, frame=one.frame.iloc[:1], others=pd.DataFrame(columns=one.others.columns))
    assert search_figures(few) == {}
    assert cost_figure(one) is None


class TestSeveralObjectives:
    """Return a search with two objectives: low score and few parameters."""

    def found(self, **objectives: str) -> Results:
        rows = searched()
        frame = rows.frame.assign(**{"cost/params": [5.0, 3.0, 9.0, 2.0, 7.0, 3.0, 3.5, 6.0, 2.0]})
        return dataclasses.replace(rows, frame=frame, study=dataclasses.replace(rows.study, objectives=objectives))

    def test_no_trial_beats_the_front_in_all_objectives(self) -> None:
        results = self.found(**{"clip_fd": "minimize", "cost/params": "minimize"})
        points = results.frame.set_index("arm")[["final/clip_fd", "cost/params"]]
        unbeaten = [
            arm
            for arm, point in points.iterrows()
            if not any((other <= point).all() and (other < point).any() for _, other in points.iterrows())
        ]
        assert 1 < len(unbeaten) < len(points)
        assert pareto_front(results) == sorted(unbeaten, key=lambda arm: points.loc[arm, "final/clip_fd"])
        [said, *_] = comparison_sentences(results)
        assert said.startswith("No trial beats these in all objectives (clip_fd minimized, cost/params minimized): ")
        assert pareto_front(self.found(**{"clip_fd": "minimize", "cost/params": "maximize"})) != pareto_front(results)

    def test_the_front_figure_labels_the_trials_of_the_front(self) -> None:
        results = self.found(**{"clip_fd": "minimize", "cost/params": "minimize"})
        figure = search_figures(results)["search_front"]
        (axis,) = figure.axes
        assert [f"trial_{text.get_text()}" for text in axis.texts] == sorted(pareto_front(results))
        assert axis.get_xlabel() == "CLIP-FD ↓"
        assert axis.get_ylabel() == "parameters ↓"

    def test_one_objective_has_none(self) -> None:
        assert pareto_front(self.found(clip_fd="minimize")) == []
        assert "search_front" not in search_figures(searched())
