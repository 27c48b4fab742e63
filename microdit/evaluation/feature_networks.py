"""Identify the scoring networks without loading them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from microdit.common.files.digests import content_digest
from microdit.encoders.config import LITE0_SIDE
from microdit.encoders.dinov2 import SIDE, SIZES, dinov2_width
from microdit.encoders.efficientnet_lite0 import lite0_digest
from microdit.encoders.pretrained_weights import PUBLISHED, SCORING, find_weights
from microdit.evaluation.clip import BUILTIN, ScoringClip, clip_folder, clip_title
from microdit.evaluation.config import BUILTIN_NET, EvalConfig
from microdit.evaluation.extensions import FEATURE_NETWORKS, FeatureNetwork, score_name

USER_NET = "user"  # key of `EXTRACTORS` for a network of the user's
SCORE_CLIP = "score-clip"  # name of the scoring CLIP's image tower
FEATURES_VERSION = 2  # part of the names of stored features; raise it if the preparation of images changes
INCEPTION_WIDTH = 2048


@dataclass(frozen=True)
class FeatureNet:
    """Describe a network whose features are compared."""

    name: str  # key of `EXTRACTORS` in feature_extractors.py
    title: str  # name with the training data or size, as in `feature_net_name`
    digest: str  # of the weights
    width: int  # features per image
    resize: str  # how images are resized to its input; part of the names of stored features
    weights: Path | None = None
    network: FeatureNetwork | None = None  # of the user's

    @property
    def tag(self) -> str:
        """Return title and first digits of the digest, such as "inception-v3@6726825d"."""
        return f"{self.title}@{self.digest[:8]}"

    @property
    def is_inception(self) -> bool:
        """Return whether this is the published Inception-v3.

        Only its distances are called FID and KID.
        """
        return self.title == "inception-v3"


def feature_net(config: EvalConfig) -> FeatureNet:
    """Return the network of `fd`, `kid`, `precision` and `recall`.

    Raises:
        ConfigError: if its weights are missing or have an unknown layout.
    """
    name = config.feature_net
    if name == BUILTIN_NET:
        side = f"bilinear-antialias-{LITE0_SIDE}"
        return FeatureNet(name, "efficientnet-lite0-imagenet", lite0_digest(), 1280, side)
    user_class = FEATURE_NETWORKS.resolve(name)
    if user_class is not None:
        network = user_class(config.feature_weights)
        digest = hashlib.sha256(network.fingerprint.encode()).hexdigest()
        return FeatureNet(USER_NET, score_name(name), digest, network.width, "own", network=network)
    weights = find_weights(name, config.feature_weights, SCORING)
    digest = content_digest(weights)
    if name == "inception-v3":
        # Another file of the same layout may have any weights; its distances must not be printed as FID.
        title = name if digest.startswith(PUBLISHED[name].digest) else f"unpublished-{name}"
        return FeatureNet(name, title, digest, INCEPTION_WIDTH, "tf1-bilinear-299", weights=weights)
    width = dinov2_width(weights, digest, SCORING.weights)
    title = f"dinov2-vit-{SIZES[width][0]}-14"
    return FeatureNet(name, title, digest, width, f"tf1-bilinear-{SIDE}", weights=weights)


def clip_net(config: EvalConfig) -> FeatureNet:
    """Return the network of `clip_fd`, `clip_score` and `class_accuracy`.

    Raises:
        ConfigError: if it is missing.
    """
    digest, width = ScoringClip.digest(config.clip), ScoringClip.embedding_width(config.clip)
    title = SCORE_CLIP if config.clip == BUILTIN else clip_title(clip_folder(config.clip))
    return FeatureNet(SCORE_CLIP, title, digest, width, "bicubic-antialias")
