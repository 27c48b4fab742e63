"""Networks whose features the distances are measured on, in the form that torch-fidelity plugs in.

Each is a subclass of torch-fidelity's `FeatureExtractorBase`, registered under a name; torch-fidelity then feeds it
datasets of uint8 images (3, H, W), keeps the features of a named input on disk and computes the metrics from them.
Another network (Inception-v3 and DINOv2 come with torch-fidelity) is its name in `FEATURE_NETS` (config.py), a row of
`TABLE` (networks.py) and one of `EXTRACTORS`. Only `Distances` loads this file: torch-fidelity takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from microdit.encoders.scoring import ScoringClip
from microdit.evaluation.lite0 import CPU_CHUNK, build_lite0, fold_batch_norm, lite0_pixels
from microdit.evaluation.networks import SCORE_CLIP


class _SingleLayer(FeatureExtractorBase):
    """What every network with one feature layer says to torch-fidelity."""

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
    """Loaded once a process, though torch-fidelity makes a new extractor for every set of pictures."""
    return fold_batch_norm(build_lite0()).eval().to(memory_format=torch.channels_last)


class EfficientNetLite0Features(_SingleLayer):
    """ImageNet EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946; 4.65 M parameters), pooled before the classifier.

    Input uint8 (B, 3, H, W) of any size, scaled to 224 x 224 bilinearly (with antialiasing where it shrinks); output
    (B, 1280) as float64, so that means and covariances are added up in it. On one CPU thread about 50 pictures/s.
    """

    # torch-fidelity hands every one of its own keywords to the constructor, hence the one `**_unused` of this project.
    def __init__(self, name: str, features_list: list[str], **_unused: Any) -> None:
        super().__init__(name, features_list)
        self.network = _lite0()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        chunk = len(images) if images.is_cuda else CPU_CHUNK
        return (torch.cat([self._pooled(part) for part in images.split(chunk)]).double(),)

    def _pooled(self, images: Tensor) -> Tensor:
        return self.network(lite0_pixels(images))  # (B, 1280)


class ScoreClipFeatures(_SingleLayer):
    """The scoring CLIP's image features before normalisation; input uint8 (B, 3, H, W), output (B, E) as float64."""

    def __init__(
        self, name: str, features_list: list[str], scoring_clip: ScoringClip | None = None, **_unused: Any
    ) -> None:
        super().__init__(name, features_list)
        if scoring_clip is None:
            raise ValueError("the score-clip extractor needs 'scoring_clip' among calculate_metrics' keywords")
        self.clip = scoring_clip

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.clip.image_features(images.permute(0, 2, 3, 1)).double(),)


EXTRACTORS: Mapping[str, type[FeatureExtractorBase]] = {
    "efficientnet-lite0": EfficientNetLite0Features,
    SCORE_CLIP: ScoreClipFeatures,
}


def register(name: str) -> str:
    """Makes `name` (a key of `EXTRACTORS`) known to torch-fidelity; returns the name that it is known by."""
    registered = f"microdit-{name}"
    if registered not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(registered, EXTRACTORS[name])
    return registered
