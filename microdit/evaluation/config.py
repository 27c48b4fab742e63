"""Settings of the scores: how many images, which numbers, on whose features, against which real images.

Imports nothing heavy: the configuration tree loads this file, the scorers only load what they use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from microdit.common.errors import ConfigError, nearest
from microdit.common.limits import check_limits

METRICS = ("fd", "kid", "clip_fd", "clip_score", "class_accuracy", "precision", "recall")
DEFAULT_METRICS = METRICS[:5]
FEATURE_NET_METRICS = ("fd", "kid", "precision", "recall")  # measured on `feature_net`; the others on `clip`
FEATURE_NETS = ("efficientnet-lite0", "inception-v3", "dinov2")
BUILTIN_NET = "efficientnet-lite0"  # comes with a package, the others' weights with a file


@dataclass(frozen=True)
class EvalConfig:
    """What `score` computes and at which size.

    `reference_split` is "train" by default. The model is asked to reproduce the training distribution; the generator's
    captions come from the validation split, and where both splits are draws of one distribution (emoji scenes are) the
    larger split gives the less noisy moments, while the floor, taken between disjoint real images, stays honest. The
    price is that copying training images would be rewarded: choose "val" when a long run on a small dataset could
    memorise it.
    """

    samples: int = 256  # images generated and scored at the end; 0 skips the evaluation
    batch_size: int = 32  # images per forward pass of the scoring networks
    metrics: tuple[str, ...] = DEFAULT_METRICS  # which of METRICS to compute
    feature_net: str = BUILTIN_NET  # network behind `fd`, `kid`, `precision`, `recall`; see evaluation/networks.py
    feature_weights: str | None = None  # its file, or a URL to fetch it from; null: where torch hub keeps it
    clip: str = "builtin"  # network behind `clip_fd` and `clip_score`: builtin, an open_clip folder, or MODEL/TAG
    prompts: str | None = None  # captions to draw, a file (evaluation/prompts.py); null: held-out captions of the data
    reference_split: Literal["train", "val"] = "train"  # real images that samples are compared with; see above
    reference_count: int = 1024  # real images in the reference; clipped to leave `samples` more for the floor
    kid_subsets: int = 50  # KID averages over this many random subsets
    kid_subset_size: int = 128  # images per subset; clipped to the smaller of the two sets
    seed: int = 0  # draws the noise of the scored images and the subsets of KID
    noises: int = 1  # times that the pictures are drawn and scored, from other noise each; the first is `final/...`
    guidance: float | None = None  # classifier-free guidance of the scored images; null: the sampler's own
    p_mean: float | None = None  # noise levels of the validation loss: ln(sigma) ~ N(p_mean, p_std^2);
    p_std: float | None = None  # null: those of training

    def __post_init__(self) -> None:
        check_limits(
            "evaluation",
            self,
            samples=10**8,
            batch_size=1 << 20,
            reference_count=10**8,
            kid_subsets=10**6,
            kid_subset_size=10**6,
            noises=1000,
            guidance=1e6,
            p_mean=100,
            p_std=100,
        )
        if not self.metrics:
            raise ConfigError(f"'evaluation.metrics' is empty; {nearest('', METRICS)}")
        for name in self.metrics:
            if name not in METRICS:
                raise ConfigError(f"'evaluation.metrics' has {name!r}; {nearest(name, METRICS)}")
        if len(set(self.metrics)) != len(self.metrics):
            raise ConfigError(f"'evaluation.metrics' names a metric twice: {list(self.metrics)}")
        if self.feature_net not in FEATURE_NETS:
            raise ConfigError(
                f"'evaluation.feature_net' is {self.feature_net!r}; {nearest(self.feature_net, FEATURE_NETS)}"
            )
        if self.feature_weights is not None and self.feature_net == BUILTIN_NET:
            raise ConfigError(
                f"'evaluation.feature_weights' is {self.feature_weights!r}, but 'evaluation.feature_net' is "
                f"{BUILTIN_NET}, whose weights come with a package; choose another network or set it to null"
            )
        for key in ("feature_weights", "clip", "prompts"):
            if getattr(self, key) == "":
                raise ConfigError(f"'evaluation.{key}' is empty; leave it out for the default")
        if self.reference_split not in ("train", "val"):
            hint = nearest(self.reference_split, ("train", "val"))
            raise ConfigError(f"'evaluation.reference_split' is {self.reference_split!r}; {hint}")
        if self.samples < 0 or self.samples == 1:
            raise ConfigError(f"'evaluation.samples' is {self.samples}; it must be 0 (none) or at least 2")
        least_of = {"batch_size": 1, "reference_count": 2, "kid_subsets": 1, "kid_subset_size": 2, "noises": 1}
        for key, least in least_of.items():
            if getattr(self, key) < least:
                raise ConfigError(f"'evaluation.{key}' is {getattr(self, key)}; it must be at least {least}")
        if self.guidance is not None and self.guidance < 0:
            raise ConfigError(f"'evaluation.guidance' is {self.guidance}; it must be at least 0, or null")
        if self.p_std is not None and not self.p_std > 0:
            raise ConfigError(f"'evaluation.p_std' is {self.p_std}; it must be above 0, or null for training's own")
