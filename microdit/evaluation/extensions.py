"""Register the user's metrics and feature networks.

B batch, F features, H W image height and width, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from microdit.common.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

BUNDLED_METRICS = ("fd", "kid", "clip_fd", "clip_score", "class_accuracy", "precision", "recall")
BUNDLED_NETS = ("efficientnet-lite0", "inception-v3", "dinov2")

# (generated images (N, H, W, 3) uint8, their captions, as many real images (N, H, W, 3) uint8) -> score
Metric = Callable[[np.ndarray, Sequence[str], np.ndarray], float]


class FeatureNetwork:
    """Map images to the features that fd, kid, precision and recall compare.

    Base class of users' feature networks.

    Args:
        weights: `evaluation.feature_weights`.
    """

    width: int  # F

    def __init__(self, weights: str | None) -> None:
        self.weights = weights

    @property
    def fingerprint(self) -> str:
        """Return a text that changes with anything that determines the features.

        It is part of the key of stored features.
        """
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: (B, 3, H, W) uint8.

        Returns:
            (B, F) on the images' device.
        """
        raise NotImplementedError


# Our own entries are None: `score` computes them together, since they share features.
METRIC_FUNCTIONS: Registry[Metric | None] = Registry("evaluation.metrics", dict.fromkeys(BUNDLED_METRICS))
register_metric = METRIC_FUNCTIONS.register

FEATURE_NETWORKS: Registry[type[FeatureNetwork] | None] = Registry(
    "evaluation.feature_net", dict.fromkeys(BUNDLED_NETS), base=FeatureNetwork
)
register_feature_network = FEATURE_NETWORKS.register


def score_name(metric: str) -> str:
    """Return the name under which a metric is stored: the last part of a dotted path."""
    return metric.rpartition(".")[2]
