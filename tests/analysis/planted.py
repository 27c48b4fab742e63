"""Build results with planted effects, without a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.io.results import Results
from analysis.io.study import Study

METRICS = ("fd", "clip_fd", "clip_score")
Score = Callable[[Mapping[str, Any]], float]


def results(
    study: str,
    arms: Mapping[str, Mapping[str, Any]],
    score: Score,
    seeds: int = 4,
    noise: float = 1.0,
    rng: int = 0,
    baseline: str = "",
    x: str = "",
    metrics: Sequence[str] = METRICS,
    params: Mapping[str, float] | None = None,
) -> Results:
    """Return results with every arm at every seed.

    The primary score is `score` of an arm's settings (lower is better) plus a seed effect that all arms share and seed
    noise. The CLIP score is 100 minus that.
    """
    draw = np.random.default_rng(rng)
    shift = 20 * draw.standard_normal(seeds)
    rows = []
    for arm, settings in arms.items():
        for seed in range(seeds):
            row: dict[str, Any] = {"run_id": f"{arm}-{seed}", "arm": arm, "seed": seed, "hue": "", "started": seed}
            row["x"] = float(settings.get(x, 0.0)) if x else arm
            for metric in metrics:
                value = 100 + score(settings) + shift[seed] + noise * draw.standard_normal()
                row[f"final/{metric}"] = 200 - value if metric == "clip_score" else value
            row |= {"cost/params": (params or {}).get(arm, 1e6), "tag.feature_net": "net@a+clip@b"}
            rows.append(row)
    found = Study(
        name=study,
        scale="demo",
        parent="",
        question="?",
        section="",
        claim="",
        baseline=baseline,
        holds="steps",
        arms=arms,
        seeds=tuple(range(seeds)),
        primary="clip_fd",
        direction="minimize",
        x=x,
        hue="",
    )
    return Results(found, pd.DataFrame(rows), (), None)
