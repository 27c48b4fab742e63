"""Scores of generated pictures: distances to real ones, agreement with captions.

N generated pictures, E embedding width. A Fréchet distance here is not FID: the features are EfficientNet-Lite0's
(`fd`) or the scoring CLIP's (`clip_fd`), and every score comes with its sample count and with what real pictures get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from microdit.data.base import CaptionedImages
from microdit.data.emoji_grammar import CLASS_NOUNS
from microdit.encoders.scoring import ScoringClip, scoring_clip
from microdit.errors import DataError
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.distances import Distances
from microdit.evaluation.networks import SCORE_CLIP, TABLE, FeatureNet
from microdit.evaluation.reference import RealSets

MEANINGS = {
    "fd": "Fréchet distance on {network}, {width} features; lower is better",
    "kid": "kernel distance on {network}; lower is better",
    "clip_fd": "Fréchet distance on {network}, {width} features; lower is better",
    "clip_score": "100 x cosine of picture and caption in {network}; higher is better",
    "class_accuracy": "share that {network} takes for the class of its label; higher is better",
    "val_loss": "denoising loss on held-out images; lower is better",
}
BESIDE = {"_floor": "floor", "_real": "real pictures"}  # what stands beside a score, by its name's ending


def score(
    images: np.ndarray,
    captions: Sequence[str],
    labels: Sequence[int],
    reference: CaptionedImages,
    config: EvalConfig,
    cache_dir: Path | str,
) -> dict[str, float]:
    """Scores `images` (N, H, W, 3) uint8, drawn from `captions` of classes `labels` (-1: unknown).

    Returns, as far as `config.metrics` asks:

    - `fd`, `kid`: Fréchet and kernel distance to `reference` on EfficientNet-Lite0 features; `clip_fd`: Fréchet
      distance on the scoring CLIP's image features. Each has a `_floor`: the same for as many real pictures that are
      not in the reference.
    - `clip_score`: 100 x the mean cosine between a picture's embedding and its caption's, in [-100, 100];
      `class_accuracy`: share of pictures whose zero-shot class is their label. Each has a `_real`: the same for real
      pictures with their own captions, which is as high as one may hope for. `class_accuracy` is left out where the
      reference has no classes or no label is known. In a scene of several objects the label is the first one named.
    - always `samples` and `reference_images`, the counts.

    Features and floors of real pictures are computed once and kept in `cache_dir`; several processes may share it.

    Raises:
        DataError: the pictures, captions and labels do not fit together or to the reference.
        ConfigError: the reference is too small.
    """
    _check(images, captions, labels, reference)
    clip = scoring_clip("cuda" if torch.cuda.is_available() else "cpu")
    real = RealSets(reference, len(images), config.reference_count)
    values = {"samples": float(len(images)), "reference_images": float(len(real.reference))}
    distances = Distances(real, config, Path(cache_dir), clip)
    plain = [name for name in ("fd", "kid") if name in config.metrics]
    if plain:
        values |= distances.of(images, config.feature_net, plain)
    if "clip_fd" in config.metrics:
        values |= {f"clip_{name}": value for name, value in distances.of(images, SCORE_CLIP, ["fd"]).items()}
    if {"clip_score", "class_accuracy"} & set(config.metrics):
        values |= agreement(images, captions, labels, reference.classes, config, clip)
        items = real.held_items()
        stack = np.stack([item.image for item in items])
        texts, classes = [item.caption for item in items], [item.label for item in items]
        of_real = agreement(stack, texts, classes, reference.classes, config, clip)
        values |= {f"{name}_real": value for name, value in of_real.items() if name in values}
    return values


def agreement(
    images: np.ndarray,
    captions: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    config: EvalConfig,
    clip: ScoringClip,
) -> dict[str, float]:
    """`clip_score` and `class_accuracy` of pictures (N, H, W, 3) uint8, as far as asked and known."""
    batches = range(0, len(images), config.batch_size)
    embedded = torch.cat([clip.embed_images(torch.from_numpy(images[i : i + config.batch_size])) for i in batches])
    values = {}
    if "clip_score" in config.metrics:
        values["clip_score"] = clip_score(embedded, clip.embed_texts(captions))
    if "class_accuracy" in config.metrics and classes and max(labels) >= 0:
        values["class_accuracy"] = class_accuracy(embedded, labels, class_embeddings(clip, classes))
    return values


def clip_score(images: Tensor, texts: Tensor) -> float:
    """100 x the mean cosine of unit vectors (N, E) and (N, E), row by row.

    Hessel et al., arXiv 2104.08718, without their factor 2.5 and without raising negative cosines to 0.
    """
    return 100 * (images * texts).sum(1).mean().item()


def class_accuracy(images: Tensor, labels: Sequence[int], classes: Tensor) -> float:
    """Share of embedded pictures (N, E) nearest to their own class among (classes, E); labels of -1 are left out."""
    wanted = torch.tensor(list(labels))
    known = wanted >= 0
    found = (images.cpu()[known] @ classes.cpu().T).argmax(1)
    return (found == wanted[known]).float().mean().item()


def class_embeddings(clip: ScoringClip, classes: Sequence[str]) -> Tensor:
    """Unit vectors (classes, E) of "a <class>", averaged over the class's names."""
    rows = [clip.embed_texts([f"a {noun}" for noun in CLASS_NOUNS.get(name, (name,))]).mean(0) for name in classes]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def feature_net_name(config: EvalConfig) -> str:
    """Which networks measured, with the first digits of their weights' digests: scores compare only where it agrees."""
    net = TABLE[config.feature_net]
    return f"{net.title}@{net.fingerprint()[:8]}+score-clip@{ScoringClip.digest()[:8]}"


def describe(values: Mapping[str, float], config: EvalConfig) -> str:
    """The scores (names as `score` gives them, and `val_loss`) for a person, a line each, below the counts.

    A line has the value, what real pictures get, and what was measured on which network; a last one says which Fréchet
    distances have fewer samples than features.
    """
    net, clip = TABLE[config.feature_net], FeatureNet(ScoringClip.embedding_width(), SCORE_CLIP, ScoringClip.digest)
    lines, scarce = [], []
    if "samples" in values:
        lines.append(f"{values['samples']:.0f} samples, {values['reference_images']:.0f} real pictures")
    for name in (name for name in MEANINGS if name in values):
        used = net if name in ("fd", "kid") else clip
        beside = [f"{w} {values[name + end]:.4g}" for end, w in BESIDE.items() if name + end in values]
        others = [
            f"{value:.4g}" for key, value in values.items() if key.startswith("noise") and key.endswith(f"/{name}")
        ]
        beside += [f"under other noises {' '.join(others)}"] if others else []
        meaning = MEANINGS[name].format(network=f"{used.title}@{used.fingerprint()[:8]}", width=used.width)
        lines.append(f"{name:16s}{values[name]:<10.4g}  {', '.join([*beside, meaning])}")
        if name in ("fd", "clip_fd") and values["samples"] <= used.width:
            scarce.append(f"{name} ({used.width})")
    if scarce:
        lines.append(
            f"Fewer samples than features: {', '.join(scarce)}. These are biased upward; compare them with their "
            "floors and with others of as many samples only."
        )
    return "\n".join(lines)


def _check(images: np.ndarray, captions: Sequence[str], labels: Sequence[int], reference: CaptionedImages) -> None:
    if not len(images) == len(captions) == len(labels):
        raise DataError(
            f"{len(images)} pictures, {len(captions)} captions and {len(labels)} labels: one each is needed"
        )
    if len(images) < 2:
        raise DataError(f"{len(images)} pictures can't be scored: a distance needs at least 2")
    side = reference.resolution
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
        raise DataError(
            f"the pictures are {images.dtype} of shape {images.shape[1:]}, the reference's uint8 of {(side, side, 3)}: "
            "resizing would change the scores"
        )
    highest = max(labels)
    if reference.classes and highest >= len(reference.classes):
        raise DataError(f"a label is {highest}, but the reference has {len(reference.classes)} classes, from 0")
