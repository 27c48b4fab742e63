"""Scores for a person, and the names of the networks behind them."""

from __future__ import annotations

from collections.abc import Mapping

from microdit.evaluation.config import BUILTIN_NET, FEATURE_NET_METRICS, EvalConfig
from microdit.evaluation.feature_extractors import open_network
from microdit.evaluation.feature_networks import FeatureNet, clip_net, feature_net
from microdit.evaluation.prompt_files import prompts_digest, read_prompts

METRIC_DESCRIPTIONS = {
    "fd": "{distance} on {network}, {width} features; lower is better",
    "kid": "{kernel} on {network}; lower is better",
    "clip_fd": "Fréchet distance on {network}, {width} features; lower is better",
    "precision": "share of samples among real pictures, in {network}'s features; higher is better",
    "recall": "share of real pictures among samples, in {network}'s features; higher is better",
    "clip_score": "100 x cosine of picture and caption in {network}; higher is better",
    "class_accuracy": "share that {network} takes for the class of its label; higher is better",
    "val_loss": "denoising loss on held-out images; lower is better",
}
BESIDE = {"_floor": "floor", "_real": "real pictures"}  # what stands beside a score, by its name's ending
UNSCORED = "none"
ON_INCEPTION = {"fd": "FID", "kid": "KID"}  # only there may they be called so


def feature_net_name(config: EvalConfig) -> str:
    """What measures, with the first digits of digests: scores compare only where it agrees.

    Networks behind distances and agreement, and where prompts come from a file those. Without samples nothing measures,
    and no weights need be there.
    """
    if not config.samples:
        return UNSCORED
    names = [feature_net(config).tag, clip_net(config).tag]
    if config.prompts is not None:
        names.append(f"prompts@{prompts_digest(config.prompts, config.samples)[:8]}")
    return "+".join(names)


def check_scoring(config: EvalConfig) -> None:
    """Raises ConfigError for whatever `config` names and isn't there, or is something else; computes nothing."""
    if not config.samples:
        return
    clip_net(config)
    if config.prompts is not None:
        read_prompts(config.prompts, config.samples)
    net = feature_net(config)
    if net.name != BUILTIN_NET:
        open_network(net)


def describe(values: Mapping[str, float], config: EvalConfig) -> str:
    """The scores (names as `score` gives them, and `val_loss`) for a person, a line each, below the counts.

    A line has the value, what real pictures get, and what was measured on which network; a last one says which Fréchet
    distances have fewer samples than features.
    """
    net, clip = feature_net(config), clip_net(config)
    lines, scarce = [], []
    if "samples" in values:
        lines.append(f"{values['samples']:.0f} samples, {values['reference_images']:.0f} real pictures")
    for name in (name for name in METRIC_DESCRIPTIONS if name in values):
        used = net if name in FEATURE_NET_METRICS else clip
        title = ON_INCEPTION.get(name, name) if used.is_inception else name
        beside = [f"{w} {values[name + end]:.4g}" for end, w in BESIDE.items() if name + end in values]
        others = [
            f"{value:.4g}" for key, value in values.items() if key.startswith("noise") and key.endswith(f"/{name}")
        ]
        beside += [f"under other noises {' '.join(others)}"] if others else []
        lines.append(f"{title:16s}{values[name]:<10.4g}  {', '.join([*beside, _meaning(name, used)])}")
        if name in ("fd", "clip_fd") and values["samples"] <= used.width:
            scarce.append(f"{title} ({used.width})")
    if scarce:
        lines.append(
            f"Fewer samples than features: {', '.join(scarce)}. These are biased upward; compare them with their "
            "floors and with others of as many samples only."
        )
    return "\n".join(lines)


def _meaning(name: str, used: FeatureNet) -> str:
    distance, kernel = ("FID", "KID") if used.is_inception else ("Fréchet distance", "kernel distance")
    return METRIC_DESCRIPTIONS[name].format(network=used.tag, width=used.width, distance=distance, kernel=kernel)
