"""Build the saved views of a study for MLflow's pages, stored in an experiment's tags.

By default MLflow's table of runs shows no scores, and its charts begin with values that all runs share. A view is the
page's state (`mlflow.sharedViewState.*`), in the format that MLflow 3.17 writes for "Save as new view".
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from microdit.common.contract import (
    PARAMS,
    SAMPLES_KEY,
    SCORES,
    SECONDS,
    SEED,
    TRAIN_FLOPS,
    TRAIN_LOSS,
    VAL_LOSS_CURVE,
    MlflowTag,
    Role,
    Tag,
    final_metric,
)

ARMS_VIEW, SCORES_VIEW, SAMPLES_VIEW = "microdit-arms", "microdit-scores", "microdit-samples"
TRIALS = f"tags.`{Tag.ROLE}` = '{Role.TRIAL}'"
COSTS = (SECONDS, TRAIN_FLOPS, PARAMS)
LOSSES = (TRAIN_LOSS, VAL_LOSS_CURVE)


def views(metric: str, minimize: bool, params: Sequence[str], steps: int, grouped: bool = True) -> dict[str, str]:
    """Return experiment tags with three views of a study.

    They show its arms as charts, its runs as a table, and its samples.

    Args:
        metric: the primary metric, which comes first and sorts the runs.
        minimize: whether lower values of it are better.
        params: settings that differ within the study.
        steps: the training step whose samples are shown.
        grouped: whether an arm is drawn as the mean of its runs; False for a search, whose runs are drawn singly.
    """
    scores = list(dict.fromkeys([metric, *SCORES]))
    listed = [SEED, *params]
    columns = [f"params.`{name}`" for name in listed] + [f"metrics.`{final_metric(name)}`" for name in scores]
    order = f"metrics.`{final_metric(metric)}`"
    state = {"searchFilter": TRIALS, "orderByKey": order, "orderByAsc": minimize, "hideEmptyCharts": True}
    state["isAccordionReordered"] = True
    state["selectedColumns"] = [*columns, f"metrics.`{SECONDS}`"]
    by_arm = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": Tag.ARM}]}
    bars = [_chart("BAR", final_metric(name), "scores") for name in scores]
    bars += [_chart("BAR", name, "costs") for name in COSTS]
    charts = [*bars, *(_line(name) for name in LOSSES)]
    shown = {"groupBy": by_arm if grouped else None, "useGroupedValuesInCharts": True, "compareRunCharts": charts}
    shown["compareRunSections"] = [_section("scores", cardHeight=260), _section("losses"), _section("costs")]
    pictures = _chart("IMAGE", SAMPLES_KEY, "pictures") | {"imageKeys": [SAMPLES_KEY], "step": steps}
    grid = {"compareRunCharts": [pictures], "compareRunSections": [_section("pictures", columns=1, cardHeight=800)]}
    named = {
        ARMS_VIEW: ("arms", state | shown),
        SCORES_VIEW: ("scores", state),
        SAMPLES_VIEW: ("samples", state | grid),
    }
    return {
        f"{MlflowTag.SHARED_VIEW_PREFIX}{key}": _packed(name, own, rank)
        for rank, (key, (name, own)) in enumerate(named.items(), 1)
    }


def _section(name: str, **layout: int) -> dict[str, Any]:
    place: dict[str, Any] = {"uuid": name, "name": name, "display": True, "isReordered": True, "deleted": False}
    return place | {"isGenerated": False} | layout


def _chart(kind: str, key: str, section: str) -> dict[str, Any]:
    place: dict[str, Any] = {"type": kind, "uuid": f"{kind}-{key}", "metricSectionId": section, "metricKey": key}
    return place | {"dataAccessKey": key, "runsCountToCompare": 10, "deleted": False, "isGenerated": False}


def _line(key: str) -> dict[str, Any]:
    axes: dict[str, Any] = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "log", "yAxisKey": "metric"}
    axes |= {"selectedMetricKeys": [key], "selectedXAxisMetricKey": "", "selectedYAxisMetricKey": "", "range": {}}
    rest = {"yAxisExpressions": [], "lineSmoothness": 0, "useGlobalLineSmoothing": True, "useGlobalXaxisKey": True}
    return _chart("LINE", key, "losses") | axes | rest


def _packed(name: str, state: Mapping[str, Any], rank: int) -> str:
    """Return the tag's value; timestamps are ranks, so that the same study gets the same tags."""
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)).decode("ascii")
    return json.dumps({"name": name, "createdAt": rank, "updatedAt": rank, "state": f"deflate;{packed}"})
