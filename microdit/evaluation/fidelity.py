"""Compute Fréchet and kernel distances, precision and recall, also of real images.

Fréchet distance: Heusel et al., arXiv 1706.08500, equation 6. KID: Bińkowski et al., arXiv 1801.01401, section 4: the
unbiased squared MMD with the kernel (x·y / width + 1)^3, averaged over random subsets; near 0 it may be negative.
Precision and recall: Kynkäänniemi et al., arXiv 1904.06991, section 2, with 3 neighbors; theirs are on VGG-16's
features, ours on the chosen network's. torch-fidelity computes all but the Fréchet distances.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset

from microdit.common.errors import CheckpointError, DataError
from microdit.common.files.atomic import atomic_path, write_text
from microdit.common.files.digests import read_signed, signed
from microdit.common.files.tensors import read_tensors, write_tensors
from microdit.evaluation.clip import ScoringClip
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.feature_extractors import EXTRACTORS, register
from microdit.evaluation.feature_networks import FEATURES_VERSION, FeatureNet
from microdit.evaluation.frechet import Moments, frechet_distance
from microdit.evaluation.reference import RealImages, ReferenceSplit, SampledImages

log = logging.getLogger(__name__)

NEIGHBORS = 3  # Kynkäänniemi et al.'s k, torch-fidelity's default
PRC_ROWS = 2048  # images per block of distances to all others: 0.8 GB in float64 against 50,000
PRECISION_RECALL = ("precision", "recall")
FEATURES = "features"  # name of the tensor in a cache file


class Distances:
    """Compute distances of sets of images to one reference.

    A covariance of N samples has rank N - 1 at most. If there are fewer samples than features, it is rank-deficient:
    the Fréchet distance is then strongly biased upward, and only distances at equal counts are comparable. A warning is
    logged with the floor.

    Args:
        real: the reference, and the real images that measure the floor.
        config: settings of the metrics.
        cache: folder where features and floors are stored; several processes may share it.
        clip: the scoring CLIP, for distances on its features.
    """

    def __init__(self, real: ReferenceSplit, config: EvalConfig, cache: Path, clip: ScoringClip) -> None:
        self.real = real
        self.config = config
        self.cache = cache
        self.clip = clip
        cache.mkdir(parents=True, exist_ok=True)

    def of(self, images: np.ndarray, net: FeatureNet, metrics: Sequence[str]) -> dict[str, float]:
        """Return metrics of samples on one network, with those of real images.

        Args:
            images: samples (N, H, W, 3) uint8.
            net: the feature network.
            metrics: of "fd", "kid", "precision", "recall".

        Returns:
            Values by name; `_floor` is the value of real images for distances, `_real` for precision and recall.

        Raises:
            DataError: if there are too few images for `precision` or `recall`.
        """
        if set(PRECISION_RECALL) & set(metrics):
            self._check_neighbors(len(images))
        beside = self._of_real(net, metrics)
        values = self._measure(SampledImages(images), net, metrics)
        self._warn(len(images), net, beside)
        return values | {f"{name}{'_real' if name in PRECISION_RECALL else '_floor'}": beside[name] for name in metrics}

    def _of_real(self, net: FeatureNet, metrics: Sequence[str]) -> dict[str, float]:
        """Return metrics of real images against the reference, which is disjoint."""
        settings = f"{self.config.kid_subsets}x{self.config.kid_subset_size}-{self.config.seed}"
        return self.of_held(
            f"floor-{len(self.real.held)}-{'-'.join(metrics)}-{settings}",
            net,
            lambda: self._measure(RealImages(self.real.data, self.real.held), net, metrics),
        )

    def of_held(self, name: str, net: FeatureNet, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return values of the held real images, stored on disk.

        One process computes them while others wait.

        Args:
            name: identifies the values and the settings that determine them, besides reference and network.
            net: the network.
            compute: called if the values are missing or damaged.

        Returns:
            Values by name.
        """
        path = self.cache / f"{self._reference_name(net)}-{name}.json"
        # A lock of the operating system is released when its holder dies.
        with FileLock(f"{path}.lock"):
            found = _stored_values(path)
            if found is None:
                found = compute()
                write_text(path, signed(found))
            return found

    def _reference_name(self, net: FeatureNet) -> str:
        """Return a name for the reference's stored features.

        It changes with everything that determines them.
        """
        return f"v{FEATURES_VERSION}-{self.real.name}-{net.name}-{net.digest[:12]}-{net.resize}"

    def _measure(self, images: SampledImages | RealImages, net: FeatureNet, metrics: Sequence[str]) -> dict[str, float]:
        """Compute metrics of images with torch-fidelity's functions of features.

        torch-fidelity's own cache is not used, since it stores pickles.
        """
        from torch_fidelity.metric_kid import kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric
        from torch_fidelity.utils import create_feature_extractor

        options = self._options(net, len(images))
        layer = EXTRACTORS[net.name].get_default_feature_layer_for_metric("fid")
        extractor = create_feature_extractor(register(net.name), [layer], **options)

        def features(of: Dataset[Tensor]) -> Tensor:
            return _features(of, extractor, layer, options)

        path = self.cache / f"{self._reference_name(net)}-features-{layer}.safetensors"

        def of_reference() -> Tensor:
            shape = (len(self.real.reference), net.width)
            reference = RealImages(self.real.data, self.real.reference)
            return _kept(path, shape, lambda: features(reference))

        own, found = features(images), {}
        if "fd" in metrics:
            found[_keys()["fd"]] = frechet_distance(Moments.of(own.numpy()), self._moments(net, of_reference))
        if "kid" in metrics:
            found |= kid_features_to_metric(own, of_reference(), **options)
        if set(PRECISION_RECALL) & set(metrics):
            found |= prc_features_to_metric(own, of_reference(), **options)
        return {name: float(found[_keys()[name]]) for name in metrics}

    def _options(self, net: FeatureNet, count: int) -> dict[str, Any]:
        """Return torch-fidelity's settings for `count` images."""
        return {
            "cache": False,
            "kid_subsets": self.config.kid_subsets,
            "kid_subset_size": min(self.config.kid_subset_size, count, len(self.real.reference)),
            "prc_neighborhood": NEIGHBORS,
            "prc_batch_size": PRC_ROWS,
            "batch_size": self.config.batch_size,
            "rng_seed": self.config.seed,
            "cuda": torch.cuda.is_available(),
            "verbose": False,
            "save_cpu_ram": True,  # no loader processes: a sweep worker may not have children
            "scoring_clip": self.clip,  # torch-fidelity passes these two to the extractor's constructor
            "feature_net": net,
        }

    def _moments(self, net: FeatureNet, features: Callable[[], Tensor]) -> Moments:
        """Return the moments of the reference's features, which are stored on disk."""
        path = self.cache / f"{self._reference_name(net)}-moments.safetensors"
        if path.is_file():
            try:
                found = Moments.load(path)
                if found.mean.shape == (net.width,) and found.root.shape[1:] == (net.width,):
                    return found
                reason = f"{path}: its sizes don't match the network's"
            except CheckpointError as error:
                reason = str(error)
            log.warning("%s; computed again", reason)
        made = Moments.of(features().numpy())
        made.save(path)
        return made

    def _check_neighbors(self, count: int) -> None:
        least = min(count, len(self.real.reference), len(self.real.held))
        if least <= NEIGHBORS:
            raise DataError(
                f"'precision' and 'recall' need more than {NEIGHBORS} images of each kind; there are {count} "
                f"samples, {len(self.real.reference)} in the reference and {len(self.real.held)} besides"
            )

    def _warn(self, count: int, net: FeatureNet, floors: dict[str, float]) -> None:
        if "fd" in floors and count <= net.width:
            log.warning(
                "%d samples for %d features of %s: their covariance is rank-deficient and the Fréchet distance biased "
                "upward. Compare it only with others of %d samples and with its floor, %.4g",
                *(count, net.width, net.title, count, floors["fd"]),
            )


def _features(images: Dataset[Tensor], extractor: Any, layer: str, options: Mapping[str, Any]) -> Tensor:
    """Return features (N, F) of images, on the CPU."""
    from torch_fidelity.utils import get_featuresdict_from_dataset

    names = ("batch_size", "cuda", "save_cpu_ram", "verbose")
    return get_featuresdict_from_dataset(images, extractor, **{name: options[name] for name in names})[layer]


def _kept(path: Path, shape: tuple[int, int], compute: Callable[[], Tensor]) -> Tensor:
    """Return the stored features at `path`; compute and store missing or damaged ones."""
    if path.is_file():
        try:
            found = read_tensors(path, signed=True)
            if found.keys() == {FEATURES} and found[FEATURES].shape == shape:
                return found[FEATURES]
            reason = f"{path}: has {', '.join(found)}, not the features of {shape[0]} images"
        except CheckpointError as error:
            reason = str(error)
        log.warning("%s; computed again", reason)
    made = compute().contiguous()
    with atomic_path(path) as temporary:
        write_tensors(temporary, {FEATURES: made})
    return made


def _stored_values(path: Path) -> dict[str, float] | None:
    """Return the stored values of real images, None if missing or damaged (logged)."""
    if not path.is_file():
        return None
    try:
        return {name: float(value) for name, value in read_signed(path).items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s: %s; computed again", path, error)
        return None


def _keys() -> dict[str, str]:
    """Return torch-fidelity's names of the metrics, by ours."""
    import torch_fidelity as tf

    return {
        "fd": tf.KEY_METRIC_FID,
        "kid": tf.KEY_METRIC_KID_MEAN,
        "precision": tf.KEY_METRIC_PRECISION,
        "recall": tf.KEY_METRIC_RECALL,
    }
