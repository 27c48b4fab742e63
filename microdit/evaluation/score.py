"""Score generated images: distances to real ones, and agreement with captions.

N generated images, E embedding width. `fd` and `kid` are FID and KID only on Inception-v3's features, which
`feature_net_name` and `describe` report. Every score has its sample count and the value of real images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from microdit.common.contract import REAL_SUFFIX
from microdit.common.errors import DataError
from microdit.common.finite import require_sound
from microdit.data.dataset import CaptionedImages
from microdit.data.emoji.captions import CLASS_NOUNS
from microdit.evaluation.clip import BUILTIN, ScoringClip, scoring_clip
from microdit.evaluation.config import FEATURE_NET_METRICS, EvalConfig
from microdit.evaluation.extensions import METRIC_FUNCTIONS, score_name
from microdit.evaluation.feature_networks import clip_net, feature_net
from microdit.evaluation.fidelity import Distances
from microdit.evaluation.reference import ReferenceSplit

AGREEMENT = ("clip_score", "class_accuracy")  # metrics of images with their captions


def score(
    images: np.ndarray,
    captions: Sequence[str],
    labels: Sequence[int],
    reference: CaptionedImages,
    config: EvalConfig,
    cache_dir: Path | str,
) -> dict[str, float]:
    """Score samples.

    Args:
        images: samples (N, H, W, 3) uint8.
        captions: the caption of each.
        labels: the class of each, -1 if unknown.
        reference: real images.
        config: metrics and networks.
        cache_dir: where features and floors of real images are stored; several processes may share it.

    Returns:
        The values of `config.metrics` by name:

        - `fd`, `kid`: Fréchet and kernel distance to `reference` on the features of `config.feature_net`; `clip_fd`:
          Fréchet distance on the image features of `config.clip`. `_floor` is the value of as many real images outside
          the reference.
        - `precision`, `recall`: share of samples within the reference's manifold, and of the reference within theirs,
          on the features of `config.feature_net`. `_real` is the value of the same other real images.
        - `clip_score`: 100 x the mean cosine of an image's embedding and its caption's, in [-100, 100];
          `class_accuracy`: share of images whose zero-shot class is their label. `_real` is the value of real images
          with their own captions, a practical maximum. `class_accuracy` is omitted if the reference has no classes or
          no label is known. In a scene of several objects the label is the first one named.
        - always `samples` and `reference_images`, the counts.

    Raises:
        DataError: if images, captions and labels do not fit together or to the reference.
        ConfigError: if the reference is too small, or a network's weights are missing.
        DivergenceError: if a score is not finite.
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
    if set(AGREEMENT) & set(config.metrics):
        values |= agreement(images, captions, labels, reference.classes, config, clip)
        of_real = distances.of_held(
            f"agreement-{len(real.held)}-{'-'.join(name for name in AGREEMENT if name in config.metrics)}",
            clip_net(config),
            lambda: _agreement_of_real(real, config, clip),
        )
        values |= {f"{name}{REAL_SUFFIX}": value for name, value in of_real.items() if name in values}
    values |= _user_metrics(images, captions, real, config)
    require_sound(values, "when the images are scored")
    return values


def _agreement_of_real(real: ReferenceSplit, config: EvalConfig, clip: ScoringClip) -> dict[str, float]:
    """Return `agreement` of the held images with their own captions."""
    items = real.held_items()
    captions, labels = [item.caption for item in items], [item.label for item in items]
    return agreement(np.stack([item.image for item in items]), captions, labels, real.data.classes, config, clip)


def _user_metrics(
    images: np.ndarray, captions: Sequence[str], real: ReferenceSplit, config: EvalConfig
) -> dict[str, float]:
    """Return the user's metrics of `images`.

    They are compared with real images outside the reference.
    """
    functions = {score_name(name): METRIC_FUNCTIONS.resolve(name) for name in config.metrics}
    functions = {name: function for name, function in functions.items() if function is not None}
    if not functions:
        return {}
    held = np.stack([item.image for item in real.held_items()])
    return {name: float(function(images, captions, held)) for name, function in functions.items() if function}


def agreement(
    images: np.ndarray,
    captions: Sequence[str],
    labels: Sequence[int],
    classes: Sequence[str],
    config: EvalConfig,
    clip: ScoringClip,
) -> dict[str, float]:
    """Return `clip_score` and `class_accuracy`, as far as requested and known.

    Args:
        images: (N, H, W, 3) uint8.
        captions: the caption of each.
        labels: the class of each, -1 if unknown.
        classes: names of the classes, empty if there are none.
        config: which metrics, and images per forward pass.
        clip: the network.
    """
    batches = range(0, len(images), config.batch_size)
    embedded = torch.cat([clip.embed_images(torch.from_numpy(images[i : i + config.batch_size])) for i in batches])
    values = {}
    if "clip_score" in config.metrics:
        # The small bundled one encodes all captions at once, as for all earlier scores.
        chunk = None if config.clip == BUILTIN else config.batch_size
        values["clip_score"] = clip_score(embedded, clip.embed_texts(captions, chunk))
    if "class_accuracy" in config.metrics and classes and max(labels) >= 0:
        values["class_accuracy"] = class_accuracy(embedded, labels, class_embeddings(clip, classes))
    return values


def clip_score(images: Tensor, texts: Tensor) -> float:
    """Return 100 x the mean cosine of images and their captions, in [-100, 100].

    Hessel et al., arXiv 2104.08718, without the factor 2.5 and without clipping negative cosines to 0.

    Args:
        images: unit-length embeddings (N, E).
        texts: those of the captions (N, E).
    """
    return 100 * (images * texts).sum(1).mean().item()


def class_accuracy(images: Tensor, labels: Sequence[int], classes: Tensor) -> float:
    """Return the share of images whose nearest class is their label, in [0, 1].

    Args:
        images: unit-length embeddings (N, E).
        labels: the class of each; images with -1 are ignored.
        classes: unit-length embeddings (classes, E).
    """
    wanted = torch.tensor(list(labels))
    known = wanted >= 0
    found = (images.cpu()[known] @ classes.cpu().T).argmax(1)
    return (found == wanted[known]).float().mean().item()


def class_embeddings(clip: ScoringClip, classes: Sequence[str]) -> Tensor:
    """Return an embedding per class, the mean over the class's names.

    Args:
        clip: embeds the texts "a NAME".
        classes: names of the classes.

    Returns:
        Unit-length vectors (classes, E).
    """
    rows = [clip.embed_texts([f"a {noun}" for noun in CLASS_NOUNS.get(name, (name,))]).mean(0) for name in classes]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def _check(images: np.ndarray, captions: Sequence[str], labels: Sequence[int], reference: CaptionedImages) -> None:
    if not len(images) == len(captions) == len(labels):
        raise DataError(f"{len(images)} images, {len(captions)} captions and {len(labels)} labels: one each is needed")
    if len(images) < 2:
        raise DataError(f"{len(images)} images can't be scored: a distance needs at least 2")
    side = reference.resolution
    if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
        raise DataError(
            f"the images are {images.dtype} of shape {images.shape[1:]}, the reference's uint8 of {(side, side, 3)}: "
            "resizing would change the scores"
        )
    highest = max(labels)
    if reference.classes and highest >= len(reference.classes):
        raise DataError(f"a label is {highest}, but the reference has {len(reference.classes)} classes, from 0")
