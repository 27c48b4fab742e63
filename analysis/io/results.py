"""Load a study's newest launch from MLflow into a data frame of runs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from analysis import labels
from analysis.errors import ReportError
from analysis.io.columns import NOT_RECORDED, PARAM_PREFIX, config_column, param_column, tag_column
from analysis.io.comparable_runs import SetSelection, choose
from analysis.io.metric_history import History, read_histories
from analysis.io.run_config import Configs
from analysis.io.runs import children
from analysis.io.study import TRIAL_NUMBER, Study, find_experiment, find_launch, hue_of, read_study, setting_of
from analysis.stats.variance_components import average_noise_sets
from microdit.common.contract import (
    FINAL_PREFIX,
    MINIMIZE,
    SAMPLES_FOLDER,
    SCORES,
    SEED,
    SINGLE_VALUE_PREFIXES,
    VAL_LOSS_QUARTER_PREFIX,
    Outcome,
    Status,
    Tag,
    final_metric,
)
from microdit.common.files.text import read_json
from microdit.common.finite import is_sound
from microdit.common.stores.secrets import masked

TAGS = (  # each has a column of the data frame
    Tag.ALGORITHM,
    Tag.DATA_FINGERPRINT,
    Tag.FEATURE_NET,
    Tag.SAMPLES,
    Tag.DEVICE,
    Tag.VERSIONS,
    Tag.GIT_COMMIT,
    Tag.GIT_DIRTY,
    Tag.TRIAL_KEY,
    Tag.COMMAND,
    Tag.REUSED_FROM,
)
MEANING_OF_MISSING = {Tag.REUSED_FROM: "", Tag.ALGORITHM: "1"}  # only algorithm 1 wrote no tag
OTHER_COLUMNS = ["run_id", "arm", "seed", "x", "hue", "outcome"]  # of the frame of runs without a score
QUARTER_LOSS = re.compile(VAL_LOSS_QUARTER_PREFIX + r"\d+")  # the last validation loss, by quarter of the noise levels
BUDGET_TAGS = {Tag.TRAINING_STEPS: "training.steps", Tag.TRAINING_BATCH_SIZE: "training.batch_size"}
STATUS_WORDS = {Status.RUNNING: "still running", Status.KILLED: "killed", Status.SCHEDULED: "not started"}
FAILED = "failed"  # outcome of a run that ended without a score, besides those in the contract
MAX_ERROR_CHARACTERS = 160
MAX_DIGITS = 18  # of a whole number in a tag or param
MAX_LINES_IN_ERROR = 4


@dataclass(frozen=True)
class Results:
    """The comparable runs of one launch.

    Attributes:
        frame: one row per finished run, sorted by the study's order of arms, then seed. Columns: run_id, arm, seed,
            started (ms since 1970), x, hue, `final/*`, `cost/*`, `tag.*`, `config.*`, `param.*`.
        absent: one line per planned or started trial without a row: why it has none.
        left_out: one line per set of runs that are not comparable with these.
        configs: all settings of a run by its id; empty if it stored none.
        others: one row per run without a score whose arm and seed have no scored run either, with the available
            columns of `frame` and `outcome` (`diverged`, `pruned`, `failed` or MLflow's status).
    """

    study: Study
    frame: pd.DataFrame
    absent: tuple[str, ...]
    client: Any
    left_out: tuple[str, ...] = ()
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    others: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=OTHER_COLUMNS))

    @cached_property
    def arms(self) -> list[str]:
        """Return the arms that have a finished run, in the study's order."""
        return list(self.frame["arm"].unique())

    @property
    def listed(self) -> list[str]:
        """Return the arms that have a finished or a diverged run, in the study's order."""
        found = dict.fromkeys([*self.frame["arm"], *self.diverged["arm"]])
        return [arm for arm in dict.fromkeys([*self.study.arms, *found]) if arm in found]

    def lost(self, arm: str) -> str:
        """Return `diverged (2 of 3)`, counting finished and diverged runs, or ""."""
        diverged = int((self.diverged["arm"] == arm).sum())
        return f"diverged ({diverged} of {diverged + int((self.frame['arm'] == arm).sum())})" if diverged else ""

    @property
    def diverged(self) -> pd.DataFrame:
        """Return the diverged runs of a study that counts divergence as a result."""
        return self.others[self.others["outcome"] == Outcome.DIVERGED]

    def tag(self, tag: str) -> str:
        """Return the distinct values of a tag over all runs, joined by commas."""
        return ", ".join(self.tags(tag))

    def tags(self, tag: str) -> list[str]:
        """Return the distinct values of a tag, in the order of the runs."""
        return list(self.frame[tag_column(tag)].unique())

    @property
    def scores(self) -> list[str]:
        """Return the scores that runs have, without `final/`, the primary one first."""
        return labels.scores(self.frame.columns, self.study.primary)

    def label(self, metric: str) -> str:
        """Return a score's name in print, which depends on the network that measured it."""
        return labels.metric_label(metric, self.tag(Tag.FEATURE_NET))

    def arrow(self, metric: str) -> str:
        """Return an arrow towards better values of a score, "" for an unknown one."""
        if metric != self.study.primary and metric not in SCORES:
            return ""
        return "↓" if self.lower_is_better(metric) else "↑"

    def lower_is_better(self, metric: str) -> bool:
        """Return whether lower values of a score are better.

        The study decides about its primary metric, the contract about others; True for unknown metrics.
        """
        if metric == self.study.primary:
            return self.study.direction == MINIMIZE
        return metric not in SCORES or not SCORES[metric].higher_is_better

    def settings(self, arm: str) -> dict[str, Any]:
        """Return an arm's settings by dotted key.

        They are its overrides, the params of its first run, and that run's config.yaml; later ones win.
        """
        if arm not in self._settings:
            row = self._first[arm]
            params = {str(k).removeprefix(PARAM_PREFIX): v for k, v in row.items() if str(k).startswith(PARAM_PREFIX)}
            known = {key: value for key, value in params.items() if not pd.isna(value)}
            own = dict(self.configs.get(row["run_id"], {}))
            self._settings[arm] = dict(self.study.arms.get(arm, {})) | known | own
        return self._settings[arm]

    @cached_property
    def _first(self) -> dict[str, dict[Any, Any]]:
        """Return the row of each arm's first run."""
        return {row["arm"]: row for row in self.frame.drop_duplicates("arm").to_dict("records")}

    @cached_property
    def _settings(self) -> dict[str, dict[str, Any]]:
        return {}

    def histories(self, metric: str, arms: Collection[str]) -> dict[str, History]:
        """Return steps and values of a metric by run id.

        Args:
            metric: its name in MLflow.
            arms: only their runs are read; runs that didn't log the metric are left out.
        """
        return read_histories(self.client, list(self.frame["run_id"][self.frame["arm"].isin(arms)]), metric)

    def samples(self, run_id: str) -> tuple[list[np.ndarray], list[str]] | None:
        """Return a run's final images and their prompts.

        Args:
            run_id: the run.

        Returns:
            Images (tile, tile, 3) uint8, and one prompt for each; None if the run stored none.
        """
        with tempfile.TemporaryDirectory() as folder:
            try:
                root = Path(self.client.download_artifacts(run_id, SAMPLES_FOLDER, folder))
                listing = read_json(root / "prompts.json", ReportError)
                strip = np.asarray(Image.open(root / "final.png", formats=["PNG"]).convert("RGB"))
                return tiles(strip, listing)
            except Exception:  # no such artifact: the exception depends on the artifact store
                return None


def tiles(strip: np.ndarray, listing: Mapping[str, Any]) -> tuple[list[np.ndarray], list[str]]:
    """Cut a strip of square tiles into images.

    Args:
        strip: (tile, N tile, 3) uint8.
        listing: the content of prompts.json: `tile` in pixels, and `prompts`.

    Returns:
        Images (tile, tile, 3), and one prompt for each.

    Raises:
        ValueError, KeyError, TypeError: if `listing` doesn't describe `strip`.
    """
    side = int(listing["tile"])
    if side < 1 or side > min(strip.shape[:2]):
        raise ValueError(f"tiles of side {side} in a strip of {strip.shape}")
    images = [strip[:side, start : start + side] for start in range(0, strip.shape[1] - side + 1, side)]
    return images, [str(prompt) for prompt in listing["prompts"]][: len(images)]


def load(client: Any, study: str, scale: str | None = None, choice: SetSelection | None = None) -> Results:
    """Return the newest finished run of each arm and seed in a study's newest launch.

    Only children of that launch count. A launch has all trials of its plan, reused ones included, and runs of other
    launches may have had other settings.

    Args:
        client: MLflow's client of the store.
        study: its name.
        scale: the newest launch at any scale if None.
        choice: the set to show if not all runs are comparable (see `analysis.io.comparable_runs`).

    Raises:
        ReportError: if the study or scale is unknown, or if no run of the launch has finished.
        MixtureError: if the runs are not comparable and `choice` rejects a mixture.
    """
    experiment = find_experiment(client, study)
    found = read_study(client, find_launch(client, experiment, study, scale))
    finished: list[tuple[str, int, Any]] = []
    other: dict[tuple[str, int], str] = {}
    unscored: dict[tuple[str, int], Any] = {}
    metrics = [*SINGLE_VALUE_PREFIXES, VAL_LOSS_QUARTER_PREFIX, *([found.x] if "/" in found.x else [])]
    for run in children(client, experiment, found.parent, metrics):
        key = (run.data.tags.get(Tag.ARM, "?"), _seed(run))
        reason = _reason(run, found)
        if reason:
            other[key], unscored[key] = reason, run
        else:
            finished.append((*key, run))
    if not finished:
        detail = "; ".join(_absent(found, other, set())[:MAX_LINES_IN_ERROR]) or "it has no trials"
        raise ReportError(f"no run of {found.name} at {found.scale} has finished ({detail})")
    configs = Configs(client, {run.info.run_id: run.info.artifact_uri for _, _, run in finished})
    every = pd.DataFrame([_row(run, found, arm, seed, configs) for arm, seed, run in finished])
    chosen, left_out = choose(every, found.holds, choice or SetSelection())
    frame = chosen.frame.dropna(axis=1, how="all")  # columns of other sets
    other |= dict.fromkeys(_keys(every), "not comparable with the runs shown")
    absent = _absent(found, other, set(_keys(frame)))
    frame = average_noise_sets(_in_order(frame, found))
    scored = set(_keys(every))
    rows = [
        _row(run, found, *key, None) | {"outcome": _outcome(run)} for key, run in unscored.items() if key not in scored
    ]
    results = Results(found, frame, tuple(absent), client, left_out, configs)
    return replace(results, others=_in_order(pd.DataFrame(rows), found)) if rows else results


def _in_order(frame: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return `frame` sorted by the study's order of arms, then seed."""
    order = {arm: rank for rank, arm in enumerate(study.arms)}
    frame = frame.assign(rank=[order.get(arm, len(order)) for arm in frame["arm"]])
    return frame.sort_values(["rank", "arm", "seed"]).drop(columns="rank").reset_index(drop=True)


def _keys(frame: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(frame["arm"], frame["seed"], strict=True))


def _absent(study: Study, other: Mapping[tuple[str, int], str], shown: set[tuple[str, int]]) -> list[str]:
    """Return one line per planned or started trial that isn't shown."""
    planned = [(arm, seed) for arm in study.arms for seed in study.seeds]
    lines = []
    for arm, seed in dict.fromkeys([*planned, *other]):
        if (arm, seed) not in shown:
            name = arm if seed < 0 else f"{arm}, seed {seed}"
            lines.append(f"{name}: {other.get((arm, seed), 'not started')}")
    return lines


def _reason(run: Any, study: Study) -> str:
    """Return why a run has no usable score, "" if it has one."""
    status, primary = run.info.status, final_metric(study.primary)
    if status == Status.FAILED:
        error = masked(run.data.tags.get(Tag.ERROR, ""))
        if run.data.tags.get(Tag.OUTCOME) == Outcome.DIVERGED:
            return f"diverged ({error[:MAX_ERROR_CHARACTERS]})"
        return f"failed ({error[:MAX_ERROR_CHARACTERS]})" if error else "failed"
    if status != Status.FINISHED:
        return str(run.data.tags.get(Tag.OUTCOME) or STATUS_WORDS.get(status, status.lower()))
    if primary not in run.data.metrics:
        return f"finished without {primary}"
    scores = {name: value for name, value in run.data.metrics.items() if name.startswith(FINAL_PREFIX)}
    ranked = sorted(scores, key=lambda name: (name != primary, name))
    wrong = [f"{name} = {_shown(scores[name])}" for name in ranked if not is_sound(scores[name])]
    return f"finished with {wrong[0]}" if wrong else ""


def _seed(run: Any) -> int:
    word = str(run.data.params.get(SEED, ""))
    return int(word) if word.isdecimal() and len(word) <= MAX_DIGITS else -1


def _outcome(run: Any) -> str:
    """Return how a run without a usable score ended; `failed` if it finished."""
    status = str(run.data.tags.get(Tag.OUTCOME) or run.info.status.lower())
    return FAILED if status == Status.FINISHED.lower() else status


def _shown(value: Any) -> str:
    """Return a non-finite number as text.

    MLflow's sqlite stores infinity as the largest float.
    """
    return "nan" if value is None or value != value else "-inf" if value < 0 else "inf"


def _row(run: Any, study: Study, arm: str, seed: int, configs: Configs | None) -> dict[str, Any]:
    tags, params = run.data.tags, run.data.params
    row: dict[str, Any] = {"run_id": run.info.run_id, "arm": arm, "seed": seed, "started": run.info.start_time}
    metrics = {name: value for name, value in run.data.metrics.items() if is_sound(value)}
    row["x"] = metrics.get(study.x, np.nan) if "/" in study.x else setting_of(study.x, arm, params, study)
    if study.x == TRIAL_NUMBER and (number := re.search(r"\d+$", arm)):
        row["x"] = float(number[0])
    row["hue"] = hue_of(study, arm, params)
    kept = {k: v for k, v in sorted(metrics.items()) if k.startswith(SINGLE_VALUE_PREFIXES)}
    row |= kept | {k: v for k, v in sorted(metrics.items()) if QUARTER_LOSS.fullmatch(k)}
    for tag in TAGS:
        row[tag_column(tag)] = tags.get(tag, MEANING_OF_MISSING.get(tag, NOT_RECORDED))
    if configs is not None:
        row |= _budget(run, configs)
    return row | {param_column(k): v for k, v in sorted(params.items()) if k != SEED}


def _budget(run: Any, configs: Configs) -> dict[str, Any]:
    """Return steps and batch size of a run's training."""
    words = {key: run.data.tags.get(tag, "") for tag, key in BUDGET_TAGS.items()}
    known: Mapping[str, Any] = {
        key: int(word) for key, word in words.items() if word.isdecimal() and len(word) <= MAX_DIGITS
    }
    if len(known) < len(words):  # an older version wrote no tags
        known = configs[run.info.run_id]
    return {config_column(key): known[key] for key in words if key in known}
