"""Name metrics and settings in print.

A Fréchet distance is called FID only on Inception features.
"""

from __future__ import annotations

from collections.abc import Iterable

from microdit.common.contract import (
    COSTS,
    FINAL_PREFIX,
    FLOOR_SUFFIX,
    INCEPTION_LABELS,
    NOT_SCORES,
    REAL_SUFFIX,
    SCORES,
)

FEATURE_WIDTHS = {  # by the beginning of a network's title
    "efficientnet-lite0": 1280,
    "inception": 2048,
    "unpublished-inception": 2048,
    "dinov2-vit-s": 384,
    "dinov2-vit-b": 768,
    "dinov2-vit-l": 1024,
    "dinov2-vit-g": 1536,
}


def networks(feature_net: str) -> list[str]:
    """Return the networks in tag `microdit.feature_net`, without digests.

    The tag has the form `title@digest+title@digest`. A part `prompts@digest` is no network: it records that the prompts
    came from a file.
    """
    return [part.partition("@")[0] for part in feature_net.split("+") if not part.startswith("prompts@")]


def feature_width(network: str) -> int | None:
    """Return the number of features of a known network, None for an unknown one."""
    found = [width for name, width in FEATURE_WIDTHS.items() if network.lower().startswith(name)]
    return found[0] if found else None


def scores(columns: Iterable[str], primary: str) -> list[str]:
    """Return the scores among the columns of a frame, the primary one first.

    Args:
        columns: names of columns; `final/*` are scores, floors and counts.
        primary: the study's primary metric.

    Returns:
        Names without `final/`, in the contract's order. Floors and counts are left out.
    """
    names = [column.removeprefix(FINAL_PREFIX) for column in columns if column.startswith(FINAL_PREFIX)]
    names = [n for n in names if n not in NOT_SCORES and "/" not in n and not n.endswith((FLOOR_SUFFIX, REAL_SUFFIX))]
    rank = {name: place for place, name in enumerate((primary, *SCORES))} | {primary: -1}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def metric_label(metric: str, feature_net: str = "") -> str:
    """Return a score's name in print.

    Args:
        metric: the score, without `final/`.
        feature_net: tag `microdit.feature_net`. Distances are called `FID` and `KID` only on Inception features.
    """
    inception = networks(feature_net)[0].lower().startswith("inception")
    if inception and metric in INCEPTION_LABELS:
        return INCEPTION_LABELS[metric]
    return SCORES[metric].label if metric in SCORES else metric.replace("_", " ")


def setting_label(key: str) -> str:
    """Return a config key or cost as axes and columns print it.

    `model.masking.ratio` is printed as `masking ratio`.
    """
    if key in COSTS:
        return COSTS[key].label
    parts = [part for part in key.split(".") if part != "model"]
    return " ".join(parts[-2:]).replace("_", " ")


def hue_label(key: str, value: str) -> str:
    """Return a line's name in a legend.

    Args:
        key: the setting that distinguishes the lines.
        value: its value; a number is printed with the setting's name.
    """
    return f"{setting_label(key)} {value}" if value[:1] in tuple("-.0123456789") else value
