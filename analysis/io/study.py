"""What a launch of a study says of itself: its question, its arms, and where an arm stands in its figure."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.errors import ReportError, nearest
from analysis.io.reading import as_mapping, is_sound, load_yaml_mapping, read_text
from microdit.common.stores.run_search import experiments, search_runs

PREFIX = "microdit/"
MOVED = " (if runs/ was moved: microdit-sweep relocate root=FOLDER updates its paths)"
TRIAL = "trial"  # x of a search over several settings: their numbers, as it tried them


@dataclass(frozen=True)
class Study:
    """What the newest launch says of itself; `arms` maps a name to its overrides, in the study's order."""

    name: str
    scale: str
    parent: str
    question: str
    section: str
    claim: str
    baseline: str
    holds: str
    arms: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    primary: str
    direction: str
    x: str
    hue: str
    search: Mapping[str, Any] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(default_factory=dict)  # of a search for several: metric -> direction


def find_experiment(client: Any, study: str) -> str:
    """The id of the study's experiment; raises ReportError naming the nearest study where there is none."""
    name = PREFIX + study
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    present = [e.name.removeprefix(PREFIX) for e in experiments(client) if e.name.startswith(PREFIX)]
    hint = nearest(study, present) if present else "the store has no study at all"
    raise ReportError(f"the store has no study '{study}'; {hint}")


def find_launch(client: Any, experiment: str, study: str, scale: str | None) -> Any:
    """The newest launch, at `scale` where one is given, as MLflow's run; raises ReportError where there is none."""
    launches = search_runs(client, [experiment], {"microdit.role": "study"})
    if not launches:
        raise ReportError(f"'{study}' has runs but no launch; microdit-sweep study={study} makes one")
    if scale is None:
        return launches[0]
    for run in launches:
        if run.data.tags.get("microdit.scale") == scale:
            return run
    scales = dict.fromkeys(run.data.tags.get("microdit.scale", "?") for run in launches)
    raise ReportError(f"'{study}' was never launched at scale '{scale}'; {nearest(scale, scales)}")


def read_study(client: Any, parent: Any) -> Study:
    """What launch `parent` says of itself; raises ReportError where its study.yaml can't be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(parent.info.run_id, "study.yaml", folder))
            return study_of(load_yaml_mapping(read_text(path), "study.yaml"), parent)
        except Exception as error:  # no such artifact: each artifact store has its own exception for it
            words = " ".join(str(error).split())[:200]
            raise ReportError(f"launch {parent.info.run_id}: its study.yaml can't be read: {words}{MOVED}") from None


def study_of(values: Mapping[str, Any], parent: Any) -> Study:
    """Return a launch's study from its study.yaml; raises ReportError or ValueError for what can't be one."""
    paper, metrics, figure, space = (as_mapping(values.get(key)) for key in ("paper", "metrics", "figure", "search"))
    searched = (next(iter(space)) if len(space) == 1 else TRIAL) if space else ""
    return Study(
        name=parent.data.tags["microdit.study"],
        scale=parent.data.tags["microdit.scale"],
        parent=parent.info.run_id,
        question=str(values.get("question", "")).strip(),
        section=str(paper.get("section", "")),
        claim=str(paper.get("claim", "")),
        baseline=str(values.get("baseline") or ""),
        holds=str(values.get("holds") or ""),
        arms={str(arm): dict(as_mapping(overrides)) for arm, overrides in as_mapping(values.get("arms")).items()},
        seeds=tuple(int(seed) for seed in values.get("seeds") or ()),
        primary=str(metrics.get("primary", "clip_fd")),
        direction=str(metrics.get("direction", "minimize")),
        x=str(figure.get("x") or searched),
        hue=str(figure.get("hue") or ""),
        search=dict(space),
        objectives=dict(as_mapping(values.get("objectives"))),
    )


def hue_of(study: Study, arm: str, params: Mapping[str, str] | None = None) -> str:
    """Which line of the figure an arm belongs to, '' where there is one.

    Where it is the arm itself, the part of its name that tells x is left out: `wide_lr=0.1` is on the line `wide`.
    """
    value = setting_of(study.hue, arm, params or {}, study) if study.hue else ""
    if study.hue == "arm" and study.x:
        value = re.sub(rf"(^|_){re.escape(study.x.rsplit('.', 1)[-1])}=[^_]+", "", arm).strip("_")
    return f"{value:g}" if isinstance(value, float) else value


def setting_of(key: str, arm: str, params: Mapping[str, str], study: Study) -> Any:
    """Return a run's value of a config key, a finite number if it is one; the arm's name if it has none."""
    value = params.get(key, study.arms.get(arm, {}).get(key, arm))
    try:
        return float(value) if is_sound(float(value)) else str(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
