"""Fréchet and kernel distances, precision and recall, with features and floors of real pictures kept on disk.

Fréchet distance: Heusel et al., arXiv 1706.08500, equation 6. KID: Bińkowski et al., arXiv 1801.01401, section 4: the
unbiased squared MMD with the kernel (x·y / width + 1)^3, averaged over random subsets; near 0 it may be negative.
Precision and recall: Kynkäänniemi et al., arXiv 1904.06991, section 2, with 3 neighbours; theirs are on VGG-16's
features, ours on the chosen network's. All but the Fréchet distances of `exact` networks are torch-fidelity's.
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

from microdit.encoders.scoring import ScoringClip
from microdit.errors import DataError
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.frechet import Moments, frechet_distance
from microdit.evaluation.networks import FEATURES_VERSION, FeatureNet
from microdit.evaluation.reference import Pictures, RealPictures, RealSets
from microdit.files import write_text

log = logging.getLogger(__name__)

NEIGHBOURS = 3  # Kynkäänniemi et al.'s k, torch-fidelity's default
PRC_ROWS = 2048  # pictures at once whose distances to all others are held: 0.8 GB in float64 against 50,000
OVERLAP = ("precision", "recall")


class Distances:
    """Distances of sets of pictures to one reference.

    With N samples a covariance has rank N - 1 at most. Fewer samples than features leave it rank-deficient: the Fréchet
    distance then is biased upward by far more than usual, and only distances at equal counts can be compared. This is
    logged, with the floor.
    """

    def __init__(self, real: RealSets, config: EvalConfig, cache: Path, clip: ScoringClip) -> None:
        self.real = real
        self.config = config
        self.cache = cache
        self.clip = clip
        cache.mkdir(parents=True, exist_ok=True)

    def of(self, images: np.ndarray, net: FeatureNet, metrics: Sequence[str]) -> dict[str, float]:
        """`metrics` ("fd", "kid", "precision", "recall") of `images` (N, H, W, 3) uint8 on the features of `net`.

        Beside each stands what real pictures get: `_floor` of distances, `_real` of precision and recall.
        """
        if set(OVERLAP) & set(metrics):
            self._check_neighbours(len(images))
        beside = self._of_real(net, metrics)
        values = self._measure(Pictures(images), net, metrics)
        self._warn(len(images), net, beside)
        return values | {f"{name}{'_real' if name in OVERLAP else '_floor'}": beside[name] for name in metrics}

    def _of_real(self, net: FeatureNet, metrics: Sequence[str]) -> dict[str, float]:
        """Real against disjoint real, computed by the first process that asks; the others wait for it."""
        settings = f"{self.config.kid_subsets}x{self.config.kid_subset_size}-{self.config.seed}"
        name = f"{self._reference_name(net)}-floor-{len(self.real.held)}-{'-'.join(metrics)}-{settings}.json"
        path = self.cache / name
        # A lock of the operating system: it is free again when its holder dies.
        with FileLock(f"{path}.lock"):
            if path.is_file():
                return json.loads(path.read_text(encoding="utf-8"))
            values = self._measure(RealPictures(self.real.data, self.real.held), net, metrics)
            write_text(path, json.dumps(values))
            return values

    def _reference_name(self, net: FeatureNet) -> str:
        """Names the reference's features on disk by all that determines them: data, count, weights, resizing."""
        return f"v{FEATURES_VERSION}-{self.real.name}-{net.name}-{net.digest[:12]}-{net.resize}"

    def _measure(self, pictures: Pictures | RealPictures, net: FeatureNet, metrics: Sequence[str]) -> dict[str, float]:
        import torch_fidelity as tf

        from microdit.evaluation.features import register

        reference: Dataset[Tensor] = RealPictures(self.real.data, self.real.reference)
        options: dict[str, Any] = {
            "input1": pictures,
            "input2": reference,
            "input2_cache_name": self._reference_name(net),
            "feature_extractor": register(net.name),
            "kid_subsets": self.config.kid_subsets,
            "kid_subset_size": min(self.config.kid_subset_size, len(pictures), len(self.real.reference)),
            "prc_neighborhood": NEIGHBOURS,
            "prc_batch_size": PRC_ROWS,
            "batch_size": self.config.batch_size,
            "cache_root": str(self.cache),
            "rng_seed": self.config.seed,
            "cuda": torch.cuda.is_available(),
            "verbose": False,
            "save_cpu_ram": True,  # no loader processes: a sweep worker may not have children
            "scoring_clip": self.clip,  # torch-fidelity hands these two to the extractor's constructor
            "feature_net": net,
        }
        if net.exact:
            return self._exact(net, metrics, options)
        asked = {"fid": "fd" in metrics, "kid": "kid" in metrics, "prc": bool(set(OVERLAP) & set(metrics))}
        found = tf.calculate_metrics(**options, **asked)
        return {name: float(found[_keys()[name]]) for name in metrics}

    def _exact(self, net: FeatureNet, metrics: Sequence[str], options: dict[str, Any]) -> dict[str, float]:
        """As torch-fidelity, from the same features, with the Fréchet distance by `frechet_distance`."""
        from torch_fidelity.metric_kid import kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric
        from torch_fidelity.utils import create_feature_extractor, extract_featuresdict_from_input_id_cached

        from microdit.evaluation.features import EXTRACTORS

        layer = EXTRACTORS[net.name].get_default_feature_layer_for_metric("fid")
        extractor = create_feature_extractor(options["feature_extractor"], [layer], **options)

        def features(of: int) -> Tensor:
            return extract_featuresdict_from_input_id_cached(of, extractor, **options)[layer]

        own, found = features(1), {}
        if "fd" in metrics:
            path = self.cache / f"{self._reference_name(net)}-moments.npz"
            if not path.is_file():
                Moments.of(features(2).numpy()).save(path)
            found[_keys()["fd"]] = frechet_distance(Moments.of(own.numpy()), Moments.load(path))
        if set(metrics) - {"fd"}:
            real = features(2)
            if "kid" in metrics:
                found |= kid_features_to_metric(own, real, **options)
            if set(OVERLAP) & set(metrics):
                found |= prc_features_to_metric(own, real, **options)
        return {name: float(found[_keys()[name]]) for name in metrics}

    def _check_neighbours(self, count: int) -> None:
        least = min(count, len(self.real.reference), len(self.real.held))
        if least <= NEIGHBOURS:
            raise DataError(
                f"'precision' and 'recall' need more than {NEIGHBOURS} pictures of each kind; there are {count} "
                f"samples, {len(self.real.reference)} in the reference and {len(self.real.held)} besides"
            )

    def _warn(self, count: int, net: FeatureNet, floors: dict[str, float]) -> None:
        if "fd" in floors and count <= net.width:
            log.warning(
                "%d samples for %d features of %s: their covariance is rank-deficient and the Fréchet distance biased "
                "upward. Compare it only with others of %d samples and with its floor, %.4g",
                *(count, net.width, net.title, count, floors["fd"]),
            )


def _keys() -> dict[str, str]:
    """What torch-fidelity calls the metrics."""
    import torch_fidelity as tf

    return {
        "fd": tf.KEY_METRIC_FID,
        "kid": tf.KEY_METRIC_KID_MEAN,
        "precision": tf.KEY_METRIC_PRECISION,
        "recall": tf.KEY_METRIC_RECALL,
    }
