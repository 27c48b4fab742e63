"""Find a study's launch and read its study.yaml."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.errors import ReportError
from microdit.common.contract import (
    DEFAULT_PRIMARY,
    EXPERIMENT_PREFIX,
    MINIMIZE,
    STUDY_FILE,
    StudyKey,
    Tag,
    experiment_name,
)
from microdit.common.errors import nearest, shown
from microdit.common.files.text import read_text
from microdit.common.files.yaml_text import MAX_STORED_BYTES, load_stored_mapping
from microdit.common.finite import is_sound
from microdit.common.stores.claims import Claim, parse_claim
from microdit.common.stores.run_search import launches, our_experiments

RELOCATE_HINT = " (if runs/ was moved: microdit-sweep relocate root=FOLDER updates its paths)"
MAX_ERROR_CHARACTERS = 200
TRIAL_NUMBER = "trial"  # x of a search over several settings


@dataclass(frozen=True)
class Study:
    """A launch as its study.yaml describes it.

    Attributes:
        parent: run id of the launch.
        arms: overrides by arm name, in the study's order.
        direction: of `primary`, minimize or maximize.
        x, hue: settings on the figure's axis and in its legend.
        search: range or choices by setting; empty for a study that is no search.
        objectives: of a search with several, direction by metric.
        claims: those of the study's YAML.
        plugins: modules with classes that the study names by dotted paths.
    """

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
    objectives: Mapping[str, str] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    plugins: tuple[str, ...] = ()


def study_names(client: Any) -> list[str]:
    """Return the studies in a store, by name."""
    return [experiment.name.removeprefix(EXPERIMENT_PREFIX) for experiment in our_experiments(client)]


def find_experiment(client: Any, study: str) -> str:
    """Return the id of a study's experiment.

    Args:
        client: MLflow's client of the store.
        study: its name.

    Raises:
        ReportError: if the store has no such study; names the nearest one.
    """
    found = client.get_experiment_by_name(experiment_name(study))
    if found is not None:
        return str(found.experiment_id)
    present = study_names(client)
    hint = nearest(study, present) if present else "the store has no study at all"
    raise ReportError(f"the store has no study '{study}'; {hint}")


def scale_of(launch: Any) -> str:
    """Return the scale of a launch, `?` if it is missing."""
    return str(launch.data.tags.get(Tag.SCALE, "?"))


def find_launch(client: Any, experiment: str, study: str, scale: str | None) -> Any:
    """Return the parent run of the newest launch.

    Args:
        client: MLflow's client of the store.
        experiment: id of the study's experiment.
        study: its name, for messages.
        scale: of the launch; None: any.

    Raises:
        ReportError: if there is no launch, or none at `scale`.
    """
    found = launches(client, experiment)
    if not found:
        raise ReportError(f"'{study}' has runs but no launch; microdit-sweep study={study} creates one")
    if scale is None:
        return found[0]
    for run in found:
        if scale_of(run) == scale:
            return run
    raise ReportError(
        f"'{study}' was never launched at scale '{scale}'; {nearest(scale, dict.fromkeys(map(scale_of, found)))}"
    )


def read_study(client: Any, parent: Any) -> Study:
    """Return the study of a launch.

    Args:
        client: MLflow's client of the store.
        parent: the launch's parent run.

    Raises:
        ReportError: if its study.yaml can't be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(parent.info.run_id, STUDY_FILE, folder))
            text = read_text(path, ReportError, limit=MAX_STORED_BYTES)
            return study_of(load_stored_mapping(text, STUDY_FILE, ReportError), parent)
        except Exception as error:  # no such artifact: the exception depends on the artifact store
            words = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
            raise ReportError(
                f"launch {parent.info.run_id}: its {STUDY_FILE} can't be read: {words}{RELOCATE_HINT}"
            ) from None


def study_of(values: Mapping[str, Any], parent: Any) -> Study:
    """Return the study that the content of a study.yaml describes.

    Args:
        values: the content.
        parent: the launch's parent run, whose tags have name and scale.

    Raises:
        ReportError, ValueError, TypeError: if a value has the wrong type.
    """
    nested = (StudyKey.PAPER, StudyKey.METRICS, StudyKey.FIGURE, StudyKey.SEARCH)
    paper, metrics, figure, space = (as_mapping(values.get(key)) for key in nested)
    searched = (next(iter(space)) if len(space) == 1 else TRIAL_NUMBER) if space else ""
    return Study(
        name=parent.data.tags[Tag.STUDY],
        scale=parent.data.tags[Tag.SCALE],
        parent=parent.info.run_id,
        question=str(values.get(StudyKey.QUESTION, "")).strip(),
        section=str(paper.get(StudyKey.SECTION, "")),
        claim=str(paper.get(StudyKey.CLAIM, "")),
        baseline=str(values.get(StudyKey.BASELINE) or ""),
        holds=str(values.get(StudyKey.HOLDS) or ""),
        arms={str(arm): dict(as_mapping(own)) for arm, own in as_mapping(values.get(StudyKey.ARMS)).items()},
        seeds=tuple(int(seed) for seed in values.get(StudyKey.SEEDS) or ()),
        primary=str(metrics.get(StudyKey.PRIMARY, DEFAULT_PRIMARY)),
        direction=str(metrics.get(StudyKey.DIRECTION, MINIMIZE)),
        x=str(figure.get(StudyKey.X) or searched),
        hue=str(figure.get(StudyKey.HUE) or ""),
        search=dict(space),
        objectives=dict(as_mapping(values.get(StudyKey.OBJECTIVES))),
        claims=tuple(parse_claim(c, STUDY_FILE, own=True) for c in values.get(StudyKey.CLAIMS) or ()),
        plugins=_modules(values.get(StudyKey.PLUGINS)),
    )


def _modules(value: Any) -> tuple[str, ...]:
    """Return the names of a list of modules; none for None."""
    if not isinstance(value, list | None) or not all(isinstance(name, str) for name in value or ()):
        raise ReportError(f"'plugins' must be a list of modules, not {shown(value)}")
    return tuple(value or ())


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one for None.

    Raises:
        ReportError: if `value` is anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ReportError(f"a mapping is needed, not {shown(value)}")
    return value


def hue_of(study: Study, arm: str, params: Mapping[str, str] | None = None) -> str:
    """Return the line of the figure that an arm belongs to, "" if there is only one.

    If the hue is the arm itself, the part of its name that repeats x is removed: `wide_lr=0.1` is on line `wide`.

    Args:
        study: names x and hue.
        arm: the arm.
        params: of one of its runs, by dotted key; None: only the arm's overrides are known.
    """
    value = setting_of(study.hue, arm, params or {}, study) if study.hue else ""
    if study.hue == "arm" and study.x:
        value = re.sub(rf"(^|_){re.escape(study.x.rsplit('.', 1)[-1])}=[^_]+", "", arm).strip("_")
    return f"{value:g}" if isinstance(value, float) else value


def setting_of(key: str, arm: str, params: Mapping[str, str], study: Study) -> Any:
    """Return a run's value of a config key, a finite float or text.

    Args:
        key: dotted.
        arm: the run's arm; its name is returned if the run has no value.
        params: of the run, by dotted key.
        study: has the arm's overrides, which are used if the run has no param.
    """
    value = params.get(key, study.arms.get(arm, {}).get(key, arm))
    try:
        return float(value) if is_sound(float(value)) else str(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
