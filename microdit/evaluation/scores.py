"""Scores of generated pictures: distances to real ones, agreement with captions.

N generated pictures, R reference pictures, E embedding width. A Fréchet distance here is not FID: the features are
EfficientNet-Lite0's (`fd`) or the scoring CLIP's (`clip_fd`), and every score is reported with its sample count and with
its floor, the distance between disjoint sets of real pictures of the same sizes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset

from microdit.data.base import CaptionedImages
from microdit.encoders.scoring import ScoringClip
from microdit.errors import ConfigError
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.features import SCORE_CLIP, TABLE, register
from microdit.files import write_text

log = logging.getLogger(__name__)

# What a caption calls a picture of the class; a zero-shot class is the mean of its nouns and templates.
NOUNS = {"airplane": ("airplane", "plane"), "automobile": ("car",), "ship": ("ship", "boat")}
TEMPLATES = ("a {}", "a picture of a {}", "there is a {}")


class Pictures(Dataset[Tensor]):
    """uint8 pictures (N, H, W, 3) as torch-fidelity wants them: a dataset of (3, H, W)."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images[i])).permute(2, 0, 1)


class RealPictures(Dataset[Tensor]):
    """Some images of a dataset, in the same form; read one by one, so that a large reference needs no memory."""

    def __init__(self, data: CaptionedImages, rows: range) -> None:
        self.data = data
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.data[self.rows[i]].image)).permute(2, 0, 1)


def score(
    images: np.ndarray,
    captions: Sequence[str],
    labels: Sequence[int],
    reference: CaptionedImages,
    config: EvalConfig,
    cache_dir: Path | str,
) -> dict[str, float]:
    """Scores `images` (N, H, W, 3) uint8, drawn from `captions` of classes `labels` (-1: unknown).

    Returns, as far as `config.metrics` asks: `fd`, `kid` (EfficientNet-Lite0), `clip_fd` (scoring CLIP), each with a
    `_floor`; `clip_score`, 100 x the mean cosine between a picture and its caption, and `clip_score_real`, the same for
    real pictures; `class_accuracy`, the share whose zero-shot class is the caption's; always `samples` and
    `reference_images`. Features of real pictures are computed once and kept in `cache_dir`.
    """
    if not len(images) == len(captions) == len(labels):
        raise ConfigError(f"{len(images)} pictures, {len(captions)} captions and {len(labels)} labels: one each is needed")
    clip = ScoringClip("cuda" if torch.cuda.is_available() else "cpu")
    split = _Split(reference, len(images), config)
    values = {"samples": float(len(images)), "reference_images": float(len(split.reference))}
    distances = _Distances(split, config, Path(cache_dir), clip)
    if {"fd", "kid"} & set(config.metrics):
        values |= distances.of(images, config.feature_net, [m for m in ("fd", "kid") if m in config.metrics], "")
    if "clip_fd" in config.metrics:
        values |= distances.of(images, SCORE_CLIP, ["fd"], "clip_")
    if {"clip_score", "class_accuracy"} & set(config.metrics):
        embedded = _embed_images(clip, images, config.batch_size)
        if "clip_score" in config.metrics:
            values["clip_score"] = clip_score(embedded, clip.embed_texts(captions))
            values["clip_score_real"] = _real_clip_score(clip, split, config)
        if "class_accuracy" in config.metrics and reference.classes and max(labels) >= 0:
            values["class_accuracy"] = class_accuracy(embedded, labels, class_embeddings(clip, reference.classes))
    return values


def clip_score(images: Tensor, texts: Tensor) -> float:
    """100 x the mean cosine of unit vectors (N, E) and (N, E), row by row."""
    return 100 * (images * texts).sum(1).mean().item()


def class_accuracy(images: Tensor, labels: Sequence[int], classes: Tensor) -> float:
    """Share of embedded pictures (N, E) nearest to their own class among (classes, E); unknown labels are left out."""
    known = torch.tensor([label >= 0 for label in labels])
    wanted = torch.tensor(list(labels))[known]
    found = (images.cpu()[known] @ classes.cpu().T).argmax(1)
    return (found == wanted).float().mean().item()


def class_embeddings(clip: ScoringClip, classes: Sequence[str]) -> Tensor:
    """Unit vectors (classes, E): the mean over each class's nouns and templates."""
    rows = []
    for name in classes:
        texts = [template.format(noun) for noun in NOUNS.get(name, (name,)) for template in TEMPLATES]
        rows.append(clip.embed_texts(texts).mean(0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def feature_net_name(config: EvalConfig) -> str:
    """Which networks measured, with the first digits of their weights' digests."""
    net = TABLE[config.feature_net]
    return f"{net.title}@{net.fingerprint()[:8]}+score-clip@{ScoringClip.digest()[:8]}"


class _Split:
    """Which real pictures are the reference, and which stand in for generated ones to give the floor."""

    def __init__(self, data: CaptionedImages, samples: int, config: EvalConfig) -> None:
        count = min(config.reference_count, max(len(data) - samples, len(data) // 2))
        if count < 2 or len(data) - count < 2:
            raise ConfigError(
                f"'evaluation.reference_split' has {len(data)} images; at least 4 are needed to score against"
            )
        self.data = data
        self.reference = range(count)
        self.held = range(count, min(count + samples, len(data)))
        self.name = f"{data.fingerprint[:20]}-{count}"


class _Distances:
    """Fréchet and kernel distances through torch-fidelity, with features and floors of real pictures kept on disk."""

    def __init__(self, split: _Split, config: EvalConfig, cache: Path, clip: ScoringClip) -> None:
        self.split = split
        self.config = config
        self.cache = cache
        self.clip = clip
        cache.mkdir(parents=True, exist_ok=True)

    def of(self, images: np.ndarray, network: str, metrics: list[str], prefix: str) -> dict[str, float]:
        """The asked `metrics` of `images` and their floors, named with `prefix`."""
        floors = self._floors(network, metrics)
        self._warn(len(images), network)
        values = self._measure(Pictures(images), network, metrics, {})
        return {f"{prefix}{name}": value for name, value in values.items()} | {
            f"{prefix}{name}_floor": floors[name] for name in metrics
        }

    def _floors(self, network: str, metrics: list[str]) -> dict[str, float]:
        """Real against disjoint real, computed by the first process that asks; the others wait for it."""
        weights = self.clip.fingerprint if network == SCORE_CLIP else TABLE[network].fingerprint()
        kid = f"{self.config.kid_subsets}x{self.config.kid_subset_size}-{self.config.seed}"
        path = self.cache / f"{self.split.name}-{len(self.split.held)}-{weights[:12]}-{'-'.join(metrics)}-{kid}.json"
        with FileLock(f"{path}.lock"):
            if path.is_file():
                return json.loads(path.read_text())
            real = RealPictures(self.split.data, self.split.held)
            values = self._measure(real, network, metrics, {})
            write_text(path, json.dumps(values))
            return values

    def _measure(
        self, pictures: Dataset[Tensor], network: str, metrics: list[str], extra: dict[str, Any]
    ) -> dict[str, float]:
        import torch_fidelity as tf

        weights = self.clip.fingerprint if network == SCORE_CLIP else TABLE[network].fingerprint()
        size = min(self.config.kid_subset_size, len(pictures), len(self.split.reference))  # type: ignore[arg-type]
        found = tf.calculate_metrics(
            input1=pictures,
            input2=RealPictures(self.split.data, self.split.reference),
            input2_cache_name=f"{self.split.name}-{weights[:12]}",
            feature_extractor=register(network),
            fid="fd" in metrics,
            kid="kid" in metrics,
            kid_subsets=self.config.kid_subsets,
            kid_subset_size=size,
            batch_size=self.config.batch_size,
            cache_root=str(self.cache),
            rng_seed=self.config.seed,
            cuda=torch.cuda.is_available(),
            verbose=False,
            save_cpu_ram=True,  # no loader processes: a sweep worker may not have children
            scoring_clip=self.clip,
            **extra,
        )
        names = {"fd": tf.KEY_METRIC_FID, "kid": tf.KEY_METRIC_KID_MEAN}
        return {name: float(found[names[name]]) for name in metrics}

    def _warn(self, count: int, network: str) -> None:
        width = TABLE[network].width if network in TABLE else self.clip.width
        if count < width:
            log.warning(
                "%d samples against %d features of %s: the covariance is rank-deficient and the distance biased upward; "
                "compare it only with others of %d samples, and with its floor",
                count,
                width,
                network,
                count,
            )


def _embed_images(clip: ScoringClip, images: np.ndarray, batch: int) -> Tensor:
    parts = [clip.embed_images(torch.from_numpy(images[i : i + batch])) for i in range(0, len(images), batch)]
    return torch.cat(parts)


def _real_clip_score(clip: ScoringClip, split: _Split, config: EvalConfig) -> float:
    items = [split.data[i] for i in split.held]
    images = _embed_images(clip, np.stack([item.image for item in items]), config.batch_size)
    return clip_score(images, clip.embed_texts([item.caption for item in items]))
