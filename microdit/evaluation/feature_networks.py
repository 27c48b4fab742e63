"""What is known of the networks that measure, before any of them is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from microdit.common.files.digests import content_digest
from microdit.encoders.dinov2 import SIDE, SIZES, dinov2_width
from microdit.encoders.efficientnet_lite0 import LITE0_SIDE, lite0_digest
from microdit.encoders.pretrained_weights import PUBLISHED, SCORING, find_weights
from microdit.evaluation.clip import BUILTIN, ScoringClip, clip_folder, clip_title
from microdit.evaluation.config import BUILTIN_NET, EvalConfig

SCORE_CLIP = "score-clip"  # the scoring CLIP's image tower, among the feature networks
FEATURES_VERSION = 2  # part of the names of stored features; raise it when pictures are prepared in another way
INCEPTION_WIDTH = 2048


@dataclass(frozen=True)
class FeatureNet:
    """A network whose features are compared.

    `exact`: Fréchet distances by `frechet.py`. The two built-in networks keep torch-fidelity's arithmetic, in which
    every score so far was recorded; the two agree to 1e-6 (tests/evaluation/test_scores.py).
    """

    name: str  # key of `EXTRACTORS` in features.py
    title: str  # name with the training data or size, as `feature_net_name` reports it
    digest: str  # of the weights
    width: int  # features per picture
    resize: str  # how pictures become its input; names stored features
    exact: bool = True
    weights: Path | None = None

    @property
    def tag(self) -> str:
        return f"{self.title}@{self.digest[:8]}"

    @property
    def is_inception(self) -> bool:
        """Whether a Fréchet distance on it is FID: on the published Inception-v3 alone."""
        return self.title == "inception-v3"


def feature_net(config: EvalConfig) -> FeatureNet:
    """The network behind `fd`, `kid`, `precision` and `recall`; raises ConfigError where its weights are missing."""
    name = config.feature_net
    if name == BUILTIN_NET:
        side = f"bilinear-antialias-{LITE0_SIDE}"
        return FeatureNet(name, "efficientnet-lite0-imagenet", lite0_digest(), 1280, side, exact=False)
    weights = find_weights(name, config.feature_weights, SCORING)
    digest = content_digest(weights)
    if name == "inception-v3":
        # Another file in the same layout may hold anything; what it measures must not be printed as FID.
        title = name if digest.startswith(PUBLISHED[name].digest) else f"unpublished-{name}"
        return FeatureNet(name, title, digest, INCEPTION_WIDTH, "tf1-bilinear-299", weights=weights)
    width = dinov2_width(weights, digest, SCORING.weights)
    title = f"dinov2-vit-{SIZES[width][0]}-14"
    return FeatureNet(name, title, digest, width, f"tf1-bilinear-{SIDE}", weights=weights)


def clip_net(config: EvalConfig) -> FeatureNet:
    """The network behind `clip_fd`, `clip_score` and `class_accuracy`; raises ConfigError where it is missing."""
    builtin = config.clip == BUILTIN
    digest, width = ScoringClip.digest(config.clip), ScoringClip.embedding_width(config.clip)
    title = SCORE_CLIP if builtin else clip_title(clip_folder(config.clip))
    return FeatureNet(SCORE_CLIP, title, digest, width, "bicubic-antialias", exact=not builtin)
