"""Wrap feature networks as feature extractors of torch-fidelity.

Each is a subclass of torch-fidelity's `FeatureExtractorBase`, registered under a name. torch-fidelity passes datasets
of uint8 images (3, H, W) to it and computes the metrics from its features.

To bundle another network, add its name to `BUNDLED_NETS` (extensions.py), a case to `feature_net` (feature_networks.py)
and a row to `EXTRACTORS`. A user's network needs only a class (`FeatureNetwork` in extensions.py). Only scoring imports
this file, since importing torch-fidelity takes seconds.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from microdit.common.errors import CheckpointError, ConfigError
from microdit.common.files.torch_archive import read_torch_file
from microdit.encoders.dinov2 import SIDE, dinov2_normalized, open_dinov2
from microdit.encoders.efficientnet_lite0 import CPU_CHUNK, build_lite0, fold_batch_norm, lite0_pixels
from microdit.encoders.pretrained_weights import SCORING
from microdit.evaluation.clip import ScoringClip
from microdit.evaluation.feature_networks import SCORE_CLIP, USER_NET, FeatureNet


class _SingleLayer(FeatureExtractorBase):
    """Implement torch-fidelity's interface for a network with one feature layer."""

    LAYER = "pooled"

    @classmethod
    def get_provided_features_list(cls) -> tuple[str, ...]:
        return (cls.LAYER,)

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        return cls.LAYER

    @staticmethod
    def can_be_compiled() -> bool:
        return False


@cache
def _lite0() -> nn.Module:
    """Return the network, loaded once per process.

    torch-fidelity creates an extractor for every set of images.
    """
    return fold_batch_norm(build_lite0()).eval().to(memory_format=torch.channels_last)


class EfficientNetLite0Features(_SingleLayer):
    """Extract features of ImageNet EfficientNet-Lite0, pooled before the classifier.

    The network has 4.65 M parameters (Tan & Le, arXiv 1905.11946). Input uint8 (B, 3, H, W) of any size, resized to 224
    x 224 bilinearly, with antialiasing when shrinking. Output (B, 1280) float64, so that means and covariances are
    summed in float64.
    """

    # torch-fidelity passes all of its keywords to the constructor, hence `**_unused`.
    def __init__(self, name: str, features_list: list[str], **_unused: Any) -> None:
        super().__init__(name, features_list)
        self.network = _lite0()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        chunk = len(images) if images.is_cuda else CPU_CHUNK
        return (torch.cat([self._pooled(part) for part in images.split(chunk)]).double(),)

    def _pooled(self, images: Tensor) -> Tensor:
        return self.network(lite0_pixels(images))  # (B, 1280)


class ScoreClipFeatures(_SingleLayer):
    """Extract the scoring CLIP's image features before normalization.

    Input uint8 (B, 3, H, W), output (B, E) float64.
    """

    def __init__(
        self, name: str, features_list: list[str], scoring_clip: ScoringClip | None = None, **_unused: Any
    ) -> None:
        super().__init__(name, features_list)
        if scoring_clip is None:
            raise ValueError("the score-clip extractor needs 'scoring_clip' among calculate_metrics' keywords")
        self.clip = scoring_clip

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.clip.image_features(images.permute(0, 2, 3, 1)).double(),)


@lru_cache(maxsize=1)
def open_inception(path: Path, digest: str) -> FeatureExtractorInceptionV3:
    """Return torch-fidelity's Inception-v3 with the weights at `path`.

    torch-fidelity's own loader would execute code in the file, so it gets an in-memory copy of the tensors only.

    Args:
        path: file of the weights.
        digest: of the file's content, so that a changed file is read again.

    Raises:
        ConfigError: if the file is broken or holds another network.
    """
    try:
        stored = read_torch_file(path)
        if not isinstance(stored, dict) or "Mixed_7c.branch1x1.conv.weight" not in stored:
            raise ValueError("it has no 'Mixed_7c.branch1x1.conv.weight'")
        copy = io.BytesIO()
        torch.save(stored, copy)
        copy.seek(0)
        return FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=copy)
    except (CheckpointError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"'{SCORING.weights}': {path} is not torch-fidelity's Inception-v3: {' '.join(str(error).split())[:300]}"
        ) from None


class InceptionFeatures(_SingleLayer):
    """Extract features of Inception-v3, the network that defines FID.

    Input uint8 (B, 3, H, W), output (B, 2048) float32, as in torch-fidelity.
    """

    LAYER = "2048"

    def __init__(self, name: str, features_list: list[str], feature_net: FeatureNet | None = None, **_unused: Any):
        super().__init__(name, features_list)
        path, digest = _weights(feature_net)
        self.network = open_inception(path, digest)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return self.network(images)


class DinoFeatures(_SingleLayer):
    """Extract DINOv2's class token after the last norm.

    Images are resized and normalized as in torch-fidelity. Input uint8 (B, 3, H, W), output (B, F) float32.
    """

    def __init__(self, name: str, features_list: list[str], feature_net: FeatureNet | None = None, **_unused: Any):
        super().__init__(name, features_list)
        path, digest = _weights(feature_net)
        self.network = open_dinov2(path, digest)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(SIDE, SIDE), align_corners=False)
        return (self.network(dinov2_normalized(x)).float(),)


class UserFeatures(_SingleLayer):
    """Extract the features of a user's network."""

    def __init__(self, name: str, features_list: list[str], feature_net: FeatureNet | None = None, **_unused: Any):
        super().__init__(name, features_list)
        if feature_net is None or feature_net.network is None:
            raise ValueError("the extractor needs 'feature_net', with its network, among the keywords")
        self.features_of = feature_net.network.features

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.features_of(images),)


def _weights(net: FeatureNet | None) -> tuple[Path, str]:
    if net is None or net.weights is None:
        raise ValueError("the extractor needs 'feature_net', with its weights, among the keywords")
    return net.weights, net.digest


def open_network(net: FeatureNet) -> None:
    """Load a network's weights, to find a broken file before any computation.

    Raises:
        ConfigError: if the file is broken or holds another network.
    """
    if net.name == "inception-v3":
        open_inception(*_weights(net))
    elif net.name == "dinov2":
        open_dinov2(*_weights(net))


EXTRACTORS: Mapping[str, type[FeatureExtractorBase]] = {
    "efficientnet-lite0": EfficientNetLite0Features,
    "inception-v3": InceptionFeatures,
    "dinov2": DinoFeatures,
    SCORE_CLIP: ScoreClipFeatures,
    USER_NET: UserFeatures,
}


def register(name: str) -> str:
    """Register an extractor with torch-fidelity, once per process.

    Args:
        name: a key of `EXTRACTORS`.

    Returns:
        Its name in torch-fidelity.
    """
    registered = f"microdit-{name}"
    if registered not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(registered, EXTRACTORS[name])
    return registered
