"""What metrics and settings are called in print. A Fréchet distance is 'FID' only on Inception features."""

from __future__ import annotations

from collections.abc import Iterable

WIDTHS = {
    "efficientnet-lite0": 1280,
    "inception": 2048,
    "unpublished-inception": 2048,
    "dinov2-vit-s": 384,
    "dinov2-vit-b": 768,
    "dinov2-vit-l": 1024,
    "dinov2-vit-g": 1536,
}  # by the start of a title
ORDER = ("clip_fd", "fd", "kid", "precision", "recall", "clip_score", "class_accuracy", "val_loss")
NOT_SCORES = ("samples", "reference_images")  # of final/*: what the scores were measured with
SHORT = {
    "clip_fd": "CLIP-FD",
    "fd": "FD",
    "kid": "KD",
    "precision": "precision",
    "recall": "recall",
    "clip_score": "CLIP score",
    "class_accuracy": "class accuracy",
    "val_loss": "validation loss",
}
COSTS = {
    "cost/params": "parameters",
    "cost/active_params": "active parameters",
    "cost/train_flops": "training FLOPs",
    "cost/mixer_params_ratio": "mixer's parameters / backbone's",
    "cost/mixer_flops_ratio": "mixer's FLOPs / backbone's",
}
# better when higher; distances and losses are better when lower
HIGHER = ("clip_score", "class_accuracy", "precision", "recall")


def networks(feature_net: str) -> list[str]:
    """Names of the networks in tag `microdit.feature_net` (`title@digest+title@digest`), digests left out.

    A third part, `prompts@digest`, names no network: the run was scored on prompts from a file.
    """
    return [part.partition("@")[0] for part in feature_net.split("+") if not part.startswith("prompts@")]


def feature_width(network: str) -> int | None:
    """Width of a known network's features, None for another."""
    found = [width for name, width in WIDTHS.items() if network.lower().startswith(name)]
    return found[0] if found else None


def scores(columns: Iterable[str], primary: str) -> list[str]:
    """Names of the `final/*` columns that are scores, the primary one first, floors and counts left out."""
    names = [column.removeprefix("final/") for column in columns if column.startswith("final/")]
    names = [n for n in names if n not in NOT_SCORES and "/" not in n and not n.endswith(("_floor", "_real"))]
    rank = {name: place for place, name in enumerate((primary, *ORDER))} | {primary: -1}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def metric_label(metric: str, feature_net: str = "") -> str:
    """A metric's name in print: `FID` and `KID` where the network is Inception, else the distance's plain name."""
    inception = networks(feature_net)[0].lower().startswith("inception")
    if inception and metric in ("fd", "kid"):
        return {"fd": "FID", "kid": "KID"}[metric]
    return SHORT.get(metric, metric.replace("_", " "))


def direction_arrow(metric: str, primary: str, direction: str) -> str:
    """Which way is better, '' for a metric that the study and this table don't know."""
    if metric == primary:
        return "↓" if direction == "minimize" else "↑"
    if metric in HIGHER:
        return "↑"
    return "↓" if metric in SHORT else ""


def lower_is_better(metric: str, primary: str, direction: str) -> bool:
    """Which way is better: what the study says of its primary metric, what is known of others, else down."""
    return direction == "minimize" if metric == primary else metric not in HIGHER


def setting_label(key: str) -> str:
    """A config key or cost as an axis or column names it: `model.masking.ratio` is `masking ratio`."""
    if key in COSTS:
        return COSTS[key]
    parts = [part for part in key.split(".") if part != "model"]
    return " ".join(parts[-2:]).replace("_", " ")


def hue_label(key: str, value: str) -> str:
    """A line's name in a legend: a number says of what."""
    return f"{setting_label(key)} {value}" if value[:1] in tuple("-.0123456789") else value
