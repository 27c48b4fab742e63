"""Fréchet and kernel distances through torch-fidelity, with features and floors of real pictures kept on disk.

Fréchet distance: Heusel et al., arXiv 1706.08500, equation 6. KID: Bińkowski et al., arXiv 1801.01401, section 4: the
unbiased squared MMD with the kernel (x·y / width + 1)^3, averaged over random subsets; near 0 it may be negative.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset

from microdit.encoders.scoring import ScoringClip
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.networks import FEATURES_VERSION, SCORE_CLIP, TABLE
from microdit.evaluation.reference import Pictures, RealPictures, RealSets
from microdit.files import write_text

log = logging.getLogger(__name__)


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

    def of(self, images: np.ndarray, network: str, metrics: Sequence[str]) -> dict[str, float]:
        """`metrics` ("fd", "kid") of `images` (N, H, W, 3) uint8 on the features of `network`, and their `_floor`s."""
        floors = self._floors(network, metrics)
        values = self._measure(Pictures(images), network, metrics)
        self._warn(len(images), network, floors)
        return values | {f"{name}_floor": floors[name] for name in metrics}

    def _floors(self, network: str, metrics: Sequence[str]) -> dict[str, float]:
        """Real against disjoint real, computed by the first process that asks; the others wait for it."""
        settings = f"{self.config.kid_subsets}x{self.config.kid_subset_size}-{self.config.seed}"
        name = f"{self._reference_name(network)}-floor-{len(self.real.held)}-{'-'.join(metrics)}-{settings}.json"
        path = self.cache / name
        # A lock of the operating system: it is free again when its holder dies.
        with FileLock(f"{path}.lock"):
            if path.is_file():
                return json.loads(path.read_text(encoding="utf-8"))
            values = self._measure(RealPictures(self.real.data, self.real.held), network, metrics)
            write_text(path, json.dumps(values))
            return values

    def _reference_name(self, network: str) -> str:
        """Names the reference's features on disk by all that determines them."""
        weights = self.clip.fingerprint if network == SCORE_CLIP else TABLE[network].fingerprint()
        return f"v{FEATURES_VERSION}-{self.real.name}-{weights[:12]}"

    def _measure(self, pictures: Pictures | RealPictures, network: str, metrics: Sequence[str]) -> dict[str, float]:
        import torch_fidelity as tf

        from microdit.evaluation.features import register

        reference: Dataset[Tensor] = RealPictures(self.real.data, self.real.reference)
        found = tf.calculate_metrics(
            input1=pictures,
            input2=reference,
            input2_cache_name=self._reference_name(network),
            feature_extractor=register(network),
            fid="fd" in metrics,
            kid="kid" in metrics,
            kid_subsets=self.config.kid_subsets,
            kid_subset_size=min(self.config.kid_subset_size, len(pictures), len(self.real.reference)),
            batch_size=self.config.batch_size,
            cache_root=str(self.cache),
            rng_seed=self.config.seed,
            cuda=torch.cuda.is_available(),
            verbose=False,
            save_cpu_ram=True,  # no loader processes: a sweep worker may not have children
            scoring_clip=self.clip,  # torch-fidelity hands it to the extractor's constructor
        )
        names = {"fd": tf.KEY_METRIC_FID, "kid": tf.KEY_METRIC_KID_MEAN}
        return {name: float(found[names[name]]) for name in metrics}

    def _warn(self, count: int, network: str, floors: dict[str, float]) -> None:
        width = TABLE[network].width if network in TABLE else self.clip.width
        if "fd" in floors and count <= width:
            log.warning(
                "%d samples for %d features of %s: their covariance is rank-deficient and the Fréchet distance biased "
                "upward. Compare it only with others of %d samples and with its floor, %.4g",
                *(count, width, network, count, floors["fd"]),
            )
