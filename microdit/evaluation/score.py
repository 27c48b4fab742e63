"""Scores of generated pictures: distances to real ones, agreement with captions.

N generated pictures, E embedding width. `fd` and `kid` are FID and KID on Inception-v3's features alone, which is for
`feature_net_name` and `describe` to say. Every score comes with its sample count and with what real pictures get.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from microdit.common.errors import DataError
from microdit.common.finite import require_sound
from microdit.data.dataset import CaptionedImages
from microdit.data.emoji.captions import CLASS_NOUNS
from microdit.evaluation.clip import BUILTIN, ScoringClip, scoring_clip
from microdit.evaluation.config import FEATURE_NET_METRICS, EvalConfig
from microdit.evaluation.feature_networks import clip_net, feature_net
from microdit.evaluation.fidelity import Distances
from microdit.evaluation.reference import ReferenceSplit


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

    - `fd`, `kid`: Fréchet and kernel distance to `reference` on the features of `config.feature_net`; `clip_fd`:
      Fréchet distance on the image features of `config.clip`. Each has a `_floor`: the same for as many real pictures
      that are not in the reference.
    - `precision`, `recall`: share of samples within the reference's manifold, and of the reference within theirs, on
      the features of `config.feature_net`. Each has a `_real`: the same for those other real pictures.
    - `clip_score`: 100 x the mean cosine between a picture's embedding and its caption's, in [-100, 100];
      `class_accuracy`: share of pictures whose zero-shot class is their label. Each has a `_real`: the same for real
      pictures with their own captions, which is as high as one may hope for. `class_accuracy` is left out where the
      reference has no classes or no label is known. In a scene of several objects the label is the first one named.
    - always `samples` and `reference_images`, the counts.

    Features and floors of real pictures are computed once and kept in `cache_dir`; several processes may share it.

    Raises:
        DataError: the pictures, captions and labels do not fit together or to the reference.
        ConfigError: the reference is too small, or a network's weights are missing.
        DivergenceError: a score is not finite.
    """
    _check(images, captions, labels, reference)
    clip = scoring_clip("cuda" if torch.cuda.is_available() else "cpu", config.clip)
    real = ReferenceSplit(reference, len(images), config.reference_count)
    values = {"samples": float(len(images)), "reference_images": float(len(real.reference))}
    distances = Distances(real, config, Path(cache_dir), clip)
    plain = [name for name in FEATURE_NET_METRICS if name in config.metrics]
    if plain:
        values |= distances.of(images, feature_net(config), plain)
    if "clip_fd" in config.metrics:
        values |= {f"clip_{name}": value for name, value in distances.of(images, clip_net(config), ["fd"]).items()}
    if {"clip_score", "class_accuracy"} & set(config.metrics):
        values |= agreement(images, captions, labels, reference.classes, config, clip)
        items = real.held_items()
        stack = np.stack([item.image for item in items])
        texts, classes = [item.caption for item in items], [item.label for item in items]
        of_real = agreement(stack, texts, classes, reference.classes, config, clip)
        values |= {f"{name}_real": value for name, value in of_real.items() if name in values}
    require_sound(values, "when the images are scored")
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
        # The small built-in one takes all captions at once, as it did for every score so far.
        chunk = None if config.clip == BUILTIN else config.batch_size
        values["clip_score"] = clip_score(embedded, clip.embed_texts(captions, chunk))
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
