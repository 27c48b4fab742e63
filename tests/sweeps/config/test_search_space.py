"""Test searches: every sampler and pruner by name, reports of pruned trials, and early errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from launching import opened, stored_runs

from analysis.cli import main as report
from microdit.common.errors import ConfigError
from sweeps.cli import main
from sweeps.config.search_space import PRUNERS, SAMPLERS, build_pruner, build_sampler, distribution, suggest
from sweeps.config.study import load_study

SEARCH: dict[str, Any] = {
    "question": "Which?",
    "search": {
        "optimizer.lr": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
        "model.ffn.type": ["swiglu", "gelu"],
        "model.mixer.depth": {"low": 0, "high": 2},
    },
    "n_trials": 5,
    "seeds": [0],
    "metrics": {"primary": "val_loss"},
}
UNSCORED = ["evaluation.samples=0", "training.sample_every=0", "training.val_every=1", "data.train_size=64"]


def write(folder: Path, **changes: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**SEARCH, **changes}))
    return str(path)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_points_of_the_space(name: str) -> None:
    space = (
        SEARCH["search"] if name != "cmaes" else {k: v for k, v in SEARCH["search"].items() if k != "model.ffn.type"}
    )
    study = optuna.create_study(directions=["minimize"])
    points = []
    for number in range(4):
        study.sampler = build_sampler(name, 0, number, "here")
        trial = study.ask()
        points.append(suggest(trial, space))
        study.tell(trial, float(number))
    assert all(1e-4 <= point["optimizer.lr"] <= 1e-2 and point["model.mixer.depth"] in (0, 1, 2) for point in points)
    assert len({point["optimizer.lr"] for point in points}) == 4, "each trial has a point of its own"


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_is_built_by_name(name: str) -> None:
    assert isinstance(build_pruner(name, "here"), PRUNERS[name])


@given(low=st.floats(1e-6, 1.0), width=st.floats(1e-6, 10.0), log=st.booleans())
def test_ranges_keep_their_bounds(low: float, width: float, log: bool) -> None:
    found = distribution("x", {"low": low, "high": low + width, "log": log}, "here")
    assert isinstance(found, optuna.distributions.FloatDistribution)
    assert (found.low, found.high, found.log) == (low, low + width, log)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"optimizer.lrr": [1, 2]}}, ["'optimizer.lrr'", "'optimizer.lr'"]),
        ({"search": {"optimizer.lr": []}}, ["'search.optimizer.lr'", "at least one"]),
        ({"search": {"optimizer.lr": {"low": 1}}}, ["'search.optimizer.lr'", "low: ..., high: ..."]),
        ({"search": {"optimizer.lr": {"low": 1.0, "high": 2.0, "lg": True}}}, ["'lg'", "'log'"]),
        ({"search": {"optimizer.lr": {"low": 2.0, "high": 1.0}}}, ["'search.optimizer.lr'", "low"]),
        ({"sampler": "tpee"}, ["'sampler'", "'tpe'"]),
        ({"sampler": {"type": "tpe", "multivariat": True}}, ["'sampler.multivariat'", "'multivariate'"]),
        ({"pruner": "medium"}, ["'pruner'", "'median'"]),
        ({"n_trials": 0}, ["'n_trials'"]),
        ({"seeds": [0, 1]}, ["one seed", "seeds: [0]"]),
        ({"arms": {"a": {}}}, ["either 'search' or 'arms'"]),
        ({"objectives": {"val_loss": "minimise"}}, ["'objectives.val_loss'", "'minimize'"]),
        (
            {"objectives": {"val_loss": "minimize", "cost/params": "minimize"}, "pruner": "median"},
            ["'pruner'", "one objective"],
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(write(tmp_path, **changes), "smoke")
    for word in ("mine.yaml", *words):
        assert word in str(caught.value)


def test_a_search_is_pruned_reported_and_extended(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruner = {"type": "median", "n_startup_trials": 1, "n_warmup_steps": 0}
    line = ["scale=smoke", "workers=1", f"cache_dir={cache_dir}", *UNSCORED]
    assert main([f"study={write(tmp_path, pruner=pruner)}", *line]) == 0
    assert "best:" in capsys.readouterr().out
    count = opened(tmp_path).count()
    assert count.done + count.pruned == 5
    assert count.pruned > 0
    pruned = stored_runs(query="tags.`microdit.outcome` = 'pruned'")
    assert len(pruned) == count.pruned
    assert all("final/val_loss" not in run.data.metrics for run in pruned)

    assert main([f"study={write(tmp_path, pruner=pruner, n_trials=6)}", *line]) == 0
    assert "5 finished before, 1 to run" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["status", "study=mine.yaml", "scale=smoke"]) == 0
    printed = capsys.readouterr().out
    assert "pruned" in printed
    assert "of 6 trials" in printed


def test_two_objectives_give_a_front(tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objectives = {"val_loss": "minimize", "cost/params": "minimize"}
    study = write(tmp_path, objectives=objectives, sampler="nsga2", n_trials=3)
    assert main([f"study={study}", "scale=smoke", "workers=1", f"cache_dir={cache_dir}", *UNSCORED]) == 0
    assert "Pareto front of" in capsys.readouterr().out
    assert report(["mine", "scale=smoke"]) == 0
    printed = capsys.readouterr().out
    assert "No trial beats these in all objectives (cost/params minimized, val_loss minimized): trial_" in printed
    assert (tmp_path / "results" / "mine" / "smoke" / "search_front.png").is_file()
