"""From any MLflow store to one tidy frame: a row per finished run of a study's newest launch."""

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

from analysis.errors import ReportError
from analysis.io.comparable_runs import NOT_RECORDED, SetSelection, choose
from analysis.io.metric_history import History, read_histories
from analysis.io.reading import is_sound, load_json, read_text
from analysis.io.run_config import Configs
from analysis.io.runs import children
from analysis.io.study import TRIAL, Study, find_experiment, find_launch, hue_of, read_study, setting_of
from analysis.stats.variance_components import average_noises
from microdit.common.stores.secrets import masked

METRIC_PREFIXES = ("final/", "cost/")
TAGS = (
    "algorithm",
    "data_fingerprint",
    "feature_net",
    "samples",
    "device",
    "versions",
    "git_commit",
    "git_dirty",
    "trial_key",
    "command",
)
ABSENT = {"reused_from": "", "algorithm": "1"}  # what a missing tag means: only algorithm 1 wrote none
AXIS_COLUMNS = ("x", "hue", "outcome")
BAND = "val/loss_q"
BANDS = re.compile(BAND + r"\d+")  # the last validation loss, by quarter of the noise levels
BUDGET = ("training.steps", "training.batch_size")  # columns; a run has them as tags, else in its config.yaml


@dataclass(frozen=True)
class Results:
    """The comparable runs of one launch.

    frame: a row per finished run with columns run_id, arm, seed, started, x, hue, `final/*` and `cost/*`, `tag.*`,
    `config.*`, `param.*`; sorted by the study's order of arms, then seed. absent: why a planned or begun trial has no
    row, a line each. left_out: a line for each set of runs that these can't be compared with. configs: the whole
    settings of a run, by its id; empty where it kept none. others: runs of the launch that have no score and aren't
    made up for by one that has, with what they have of the frame's columns and `outcome`, as MLflow's status or tag
    tells it (`diverged`, `pruned`, `failed`).
    """

    study: Study
    frame: pd.DataFrame
    absent: tuple[str, ...]
    client: Any
    left_out: tuple[str, ...] = ()
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    others: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["run_id", "arm", "seed", *AXIS_COLUMNS]))

    @cached_property
    def arms(self) -> list[str]:
        """Names of the arms that have a finished run, in the study's order."""
        return list(self.frame["arm"].unique())

    @property
    def listed(self) -> list[str]:
        """Arms with a finished run or one that diverged, in the study's order."""
        found = dict.fromkeys([*self.frame["arm"], *self.diverged["arm"]])
        return [arm for arm in dict.fromkeys([*self.study.arms, *found]) if arm in found]

    def lost(self, arm: str) -> str:
        """`diverged (2 of 3)`, of the runs that ended either way; '' where none diverged."""
        diverged = int((self.diverged["arm"] == arm).sum())
        return f"diverged ({diverged} of {diverged + int((self.frame['arm'] == arm).sum())})" if diverged else ""

    @property
    def diverged(self) -> pd.DataFrame:
        """The runs of `others` whose training broke, in a study where that is a result."""
        return self.others[self.others["outcome"] == "diverged"]

    def tag(self, name: str) -> str:
        """Values of tag `microdit.<name>` over all runs, joined where they differ."""
        return ", ".join(self.tags(name))

    def tags(self, name: str) -> list[str]:
        """The different values of tag `microdit.<name>`, in the runs' order."""
        return list(self.frame[f"tag.{name}"].unique())

    def settings(self, arm: str) -> dict[str, Any]:
        """An arm's dotted config keys to values: its first run's config.yaml, or what launch and parameters tell."""
        if arm not in self._settings:
            row = self._first[arm]
            params = {str(k).removeprefix("param."): v for k, v in row.items() if str(k).startswith("param.")}
            known = {key: value for key, value in params.items() if not pd.isna(value)}
            own = dict(self.configs.get(row["run_id"], {}))
            self._settings[arm] = dict(self.study.arms.get(arm, {})) | known | own
        return self._settings[arm]

    @cached_property
    def _first(self) -> dict[str, dict[Any, Any]]:
        """The first run's row of each arm."""
        return {row["arm"]: row for row in self.frame.drop_duplicates("arm").to_dict("records")}

    @cached_property
    def _settings(self) -> dict[str, dict[str, Any]]:
        return {}

    def histories(self, metric: str, arms: Collection[str]) -> dict[str, History]:
        """Steps and values of a metric by run, for the runs of `arms` that logged it."""
        return read_histories(self.client, list(self.frame["run_id"][self.frame["arm"].isin(arms)]), metric)

    def samples(self, run_id: str) -> tuple[list[np.ndarray], list[str]] | None:
        """Final pictures, each (tile, tile, 3) uint8, with their prompts; None where the run left none."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                root = Path(self.client.download_artifacts(run_id, "samples", folder))
                listing = load_json(read_text(root / "prompts.json"), "prompts.json")
                strip = np.asarray(Image.open(root / "final.png", formats=["PNG"]).convert("RGB"))
                return tiles(strip, listing)
            except Exception:  # no such artifact: each artifact store has its own exception for it
                return None


def tiles(strip: np.ndarray, listing: Mapping[str, Any]) -> tuple[list[np.ndarray], list[str]]:
    """Cut a strip of square tiles as prompts.json describes it; raises an error if that describes another."""
    side = int(listing["tile"])
    if side < 1 or side > min(strip.shape[:2]):
        raise ValueError(f"tiles of side {side} in a strip of {strip.shape}")
    pictures = [strip[:side, start : start + side] for start in range(0, strip.shape[1] - side + 1, side)]
    return pictures, [str(prompt) for prompt in listing["prompts"]][: len(pictures)]


def load(client: Any, study: str, scale: str | None = None, choice: SetSelection | None = None) -> Results:
    """Reads the newest launch of `study` (at `scale`, else at any); of each arm and seed the newest finished run.

    Only that launch's own children count: a launch lists every trial of its plan, reused ones too, while runs of other
    launches may have had other settings. If the runs are not all comparable (see `analysis.io.comparable_runs`),
    `choice` picks the set. Raises ReportError for an unknown study or scale and for a launch without a finished run.
    """
    experiment = find_experiment(client, study)
    found = read_study(client, find_launch(client, experiment, study, scale))
    finished: list[tuple[str, int, Any]] = []
    other: dict[tuple[str, int], str] = {}
    unscored: dict[tuple[str, int], Any] = {}
    metrics = [*METRIC_PREFIXES, BAND, *([found.x] if "/" in found.x else [])]
    for run in children(client, experiment, found.parent, metrics):
        key = (run.data.tags.get("microdit.arm", "?"), _seed(run))
        reason = _reason(run, found)
        if reason:
            other[key], unscored[key] = reason, run
        else:
            finished.append((*key, run))
    if not finished:
        detail = "; ".join(_absent(found, other, set())[:4]) or "it has no trials"
        raise ReportError(f"no run of {found.name} at {found.scale} has finished ({detail})")
    configs = Configs(client, {run.info.run_id: run.info.artifact_uri for _, _, run in finished})
    every = pd.DataFrame([_row(run, found, arm, seed, configs) for arm, seed, run in finished])
    chosen, left_out = choose(every, found.holds, choice or SetSelection())
    frame = chosen.frame.dropna(axis=1, how="all")  # columns of other sets
    other |= dict.fromkeys(_keys(every), "in a set that is left out")
    absent = _absent(found, other, set(_keys(frame)))
    frame = average_noises(_in_order(frame, found))
    scored = set(_keys(every))
    rows = [
        _row(run, found, *key, None) | {"outcome": _outcome(run)} for key, run in unscored.items() if key not in scored
    ]
    results = Results(found, frame, tuple(absent), client, left_out, configs)
    return replace(results, others=_in_order(pd.DataFrame(rows), found)) if rows else results


def _in_order(frame: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Sorted by the study's order of arms, then seed."""
    order = {arm: rank for rank, arm in enumerate(study.arms)}
    frame = frame.assign(rank=[order.get(arm, len(order)) for arm in frame["arm"]])
    return frame.sort_values(["rank", "arm", "seed"]).drop(columns="rank").reset_index(drop=True)


def _keys(frame: pd.DataFrame) -> list[tuple[str, int]]:
    return list(zip(frame["arm"], frame["seed"], strict=True))


def _absent(study: Study, other: Mapping[tuple[str, int], str], shown: set[tuple[str, int]]) -> list[str]:
    """Why planned or begun trials aren't shown."""
    planned = [(arm, seed) for arm in study.arms for seed in study.seeds]
    lines = []
    for arm, seed in dict.fromkeys([*planned, *other]):
        if (arm, seed) not in shown:
            name = arm if seed < 0 else f"{arm}, seed {seed}"
            lines.append(f"{name}: {other.get((arm, seed), 'not begun')}")
    return lines


def _reason(run: Any, study: Study) -> str:
    """Why a run can't be used, '' if it can."""
    status = run.info.status
    if status == "FAILED":
        error = masked(run.data.tags.get("microdit.error", ""))
        if run.data.tags.get("microdit.outcome") == "diverged":
            return f"diverged ({error[:160]})"
        return f"failed ({error[:160]})" if error else "failed"
    if status != "FINISHED":
        words = {"RUNNING": "still running", "KILLED": "killed", "SCHEDULED": "not begun"}
        return run.data.tags.get("microdit.outcome") or words.get(status, status.lower())
    if f"final/{study.primary}" not in run.data.metrics:
        return f"finished without final/{study.primary}"
    scores = {name: value for name, value in run.data.metrics.items() if name.startswith("final/")}
    ranked = sorted(scores, key=lambda name: (name != f"final/{study.primary}", name))
    wrong = [f"{name} = {_shown(scores[name])}" for name in ranked if not is_sound(scores[name])]
    return f"finished with {wrong[0]}" if wrong else ""


def _seed(run: Any) -> int:
    word = str(run.data.params.get("seed", ""))
    return int(word) if word.isdecimal() and len(word) < 19 else -1


def _outcome(run: Any) -> str:
    """Return how a run without a usable score ended; one that finished without one has failed."""
    status = str(run.data.tags.get("microdit.outcome") or run.info.status.lower())
    return "failed" if status == "finished" else status


def _shown(value: Any) -> str:
    """Return a number that is not sound as it was meant: MLflow's sqlite keeps infinity as the largest float."""
    return "nan" if value is None or value != value else "-inf" if value < 0 else "inf"


def _row(run: Any, study: Study, arm: str, seed: int, configs: Configs | None) -> dict[str, Any]:
    tags, params = run.data.tags, run.data.params
    row: dict[str, Any] = {"run_id": run.info.run_id, "arm": arm, "seed": seed, "started": run.info.start_time}
    metrics = {name: value for name, value in run.data.metrics.items() if is_sound(value)}
    row["x"] = metrics.get(study.x, np.nan) if "/" in study.x else setting_of(study.x, arm, params, study)
    if study.x == TRIAL and (number := re.search(r"\d+$", arm)):
        row["x"] = float(number[0])
    row["hue"] = hue_of(study, arm, params)
    kept = {k: v for k, v in sorted(metrics.items()) if k.startswith(METRIC_PREFIXES)}
    row |= kept | {k: v for k, v in sorted(metrics.items()) if BANDS.fullmatch(k)}
    for name in (*TAGS, "reused_from"):
        row[f"tag.{name}"] = tags.get(f"microdit.{name}", ABSENT.get(name, NOT_RECORDED))
    if configs is not None:
        row |= _budget(run, configs)
    return row | {f"param.{k}": v for k, v in sorted(params.items()) if k != "seed"}


def _budget(run: Any, configs: Configs) -> dict[str, Any]:
    """What a run was trained for."""
    tags = run.data.tags
    words = {key: tags.get(f"microdit.{key}", "") for key in BUDGET}
    known: Mapping[str, Any] = {k: int(word) for k, word in words.items() if word.isdecimal() and len(word) < 19}
    if len(known) < len(BUDGET):  # of an older version
        known = configs[run.info.run_id]
    return {f"config.{key}": known[key] for key in BUDGET if key in known}
