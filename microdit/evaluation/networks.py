"""What is known of the networks that measure, without loading them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from microdit.evaluation.lite0 import lite0_weights
from microdit.files import sha256

SCORE_CLIP = "score-clip"  # the scoring CLIP's image tower, among the feature networks
FEATURES_VERSION = 1  # part of the names of stored features; raise it when pictures are prepared in another way


@dataclass(frozen=True)
class FeatureNet:
    """A row of `TABLE`."""

    width: int  # features per picture
    title: str  # name with the training data, as `feature_net_name` reports it
    fingerprint: Callable[[], str]  # digest of the weights


@cache
def _lite0_fingerprint() -> str:
    return sha256(lite0_weights())


TABLE: Mapping[str, FeatureNet] = {
    "efficientnet-lite0": FeatureNet(1280, "efficientnet-lite0-imagenet", _lite0_fingerprint),
}
