"""Describe scores and the networks that computed them."""

from __future__ import annotations

from collections.abc import Mapping

from microdit.common.contract import FLOOR_SUFFIX, INCEPTION_LABELS, REAL_SUFFIX
from microdit.evaluation.config import BUILTIN_NET, FEATURE_NET_METRICS, EvalConfig
from microdit.evaluation.extensions import score_name
from microdit.evaluation.feature_extractors import open_network
from microdit.evaluation.feature_networks import FeatureNet, clip_net, feature_net
from microdit.evaluation.prompt_files import prompts_digest, read_prompts

METRIC_DESCRIPTIONS = {
    "fd": "{distance} on {network}, {width} features; lower is better",
    "kid": "{kernel} on {network}; lower is better",
    "clip_fd": "Fréchet distance on {network}, {width} features; lower is better",
    "precision": "share of samples among real images, in {network}'s features; higher is better",
    "recall": "share of real images among samples, in {network}'s features; higher is better",
    "clip_score": "100 x cosine of image and caption in {network}; higher is better",
    "class_accuracy": "share whose class in {network} is its label; higher is better",
    "val_loss": "denoising loss on held-out images; lower is better",
}
COMPARISON_LABELS = {FLOOR_SUFFIX: "floor", REAL_SUFFIX: "real images"}  # by the ending of a name
UNSCORED = "none"


def feature_net_name(config: EvalConfig) -> str:
    """Return the scoring networks with the first digits of their digests.

    Scores are comparable only if it is equal. If prompts come from a file, the text includes their digest. It is
    "none", and no weights are needed, if `samples` is 0.

    Raises:
        ConfigError: if weights or the file of prompts are missing or broken.
    """
    if not config.samples:
        return UNSCORED
    names = [feature_net(config).tag, clip_net(config).tag]
    if config.prompts is not None:
        names.append(f"prompts@{prompts_digest(config.prompts, config.samples)[:8]}")
    return "+".join(names)


def check_scoring(config: EvalConfig) -> None:
    """Check that all files that `config` names exist and have the right format.

    Raises:
        ConfigError: if something is missing or has another format.
    """
    if not config.samples:
        return
    clip_net(config)
    if config.prompts is not None:
        read_prompts(config.prompts, config.samples)
    net = feature_net(config)
    if net.name != BUILTIN_NET:
        open_network(net)


def describe(values: Mapping[str, float], config: EvalConfig) -> str:
    """Return a text with one line per score, below the counts.

    A line has the value, the value of real images, and what was measured with which network. The last line lists the
    Fréchet distances that have fewer samples than features.

    Args:
        values: scores by the names of `score`, and `val_loss`.
        config: metrics and networks.
    """
    net, clip = feature_net(config), clip_net(config)
    lines, scarce = [], []
    if "samples" in values:
        lines.append(f"{values['samples']:.0f} samples, {values['reference_images']:.0f} real images")
    for name in (name for name in METRIC_DESCRIPTIONS if name in values):
        used = net if name in FEATURE_NET_METRICS else clip
        title = INCEPTION_LABELS.get(name, name) if used.is_inception else name
        beside = [f"{w} {values[name + end]:.4g}" for end, w in COMPARISON_LABELS.items() if name + end in values]
        others = [
            f"{value:.4g}" for key, value in values.items() if key.startswith("noise") and key.endswith(f"/{name}")
        ]
        beside += [f"under other diffusion noise {' '.join(others)}"] if others else []
        lines.append(f"{title:16s}{values[name]:<10.4g}  {', '.join([*beside, _meaning(name, used)])}")
        if name in ("fd", "clip_fd") and values["samples"] <= used.width:
            scarce.append(f"{title} ({used.width})")
    own = [score_name(name) for name in config.metrics if score_name(name) not in METRIC_DESCRIPTIONS]
    lines += [f"{name:16s}{values[name]:<10.4g}" for name in own if name in values]
    if scarce:
        lines.append(
            f"Fewer samples than features: {', '.join(scarce)}. These are biased upward; compare them only with their "
            "floors and with others of as many samples."
        )
    return "\n".join(lines)


def _meaning(name: str, used: FeatureNet) -> str:
    distance, kernel = ("FID", "KID") if used.is_inception else ("Fréchet distance", "kernel distance")
    return METRIC_DESCRIPTIONS[name].format(network=used.tag, width=used.width, distance=distance, kernel=kernel)
