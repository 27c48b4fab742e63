"""Define the settings of the scores.

Imports nothing heavy, because composing a configuration loads this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from microdit.common.errors import ConfigError, nearest
from microdit.common.limits import NOT_EMPTY, Range, check_settings
from microdit.evaluation.extensions import BUNDLED_METRICS, FEATURE_NETWORKS, METRIC_FUNCTIONS, score_name

DEFAULT_METRICS = BUNDLED_METRICS[:5]
FEATURE_NET_METRICS = ("fd", "kid", "precision", "recall")  # measured on `feature_net`; the others on `clip`
BUILTIN_NET = "efficientnet-lite0"  # bundled in a package; the other networks' weights are files


@dataclass(frozen=True)
class EvalConfig:
    """Configure what `score` computes, from how many images and with which networks.

    `reference_split` is "train" by default, since the model should reproduce the training distribution. Captions come
    from the validation split. If both splits are draws of one distribution (as emoji scenes are), the larger one gives
    moments with less statistical noise, and the floor between disjoint real images is still valid. However, copied
    training images would score well: choose "val" if a long run on a small dataset could memorize it.
    """

    samples: Annotated[int, Range(0, 10**8)] = 1024  # images generated and scored at the end; 0 skips the evaluation
    batch_size: Annotated[int, Range(1, 1 << 20)] = 32  # images per forward pass of the scoring networks
    metrics: tuple[str, ...] = DEFAULT_METRICS  # bundled names, registered ones or dotted paths of functions
    feature_net: str = BUILTIN_NET  # network of `fd`, `kid`, `precision`, `recall`; see evaluation/feature_networks.py
    # Its file, or a URL to download it from; null: the file in torch hub's folder
    feature_weights: Annotated[str | None, NOT_EMPTY] = None
    # Network of `clip_fd` and `clip_score`: builtin, an open_clip folder, or MODEL/TAG
    clip: Annotated[str, NOT_EMPTY] = "builtin"
    # File of captions to sample (evaluation/prompt_files.py); null: held-out captions of the data
    prompts: Annotated[str | None, NOT_EMPTY] = None
    reference_split: Literal["train", "val"] = "train"  # real images that samples are compared with; see above
    # Real images in the reference; clipped to leave `samples` more for the floor
    reference_count: Annotated[int, Range(2, 10**8)] = 4096
    kid_subsets: Annotated[int, Range(1, 10**6)] = 50  # KID averages over this many random subsets
    kid_subset_size: Annotated[int, Range(2, 10**6)] = 128  # images per subset; clipped to the smaller of the two sets
    seed: int = 0  # draws the noise of the scored images and the subsets of KID
    # Number of sample sets, each from different diffusion noise; the first is `final/...`
    noises: Annotated[int, Range(1, 1000)] = 1
    # Classifier-free guidance of the scored images; null: the sampler's own
    guidance: Annotated[float | None, Range(0, 1e6)] = None
    # Noise levels of the validation loss: ln(sigma) ~ N(p_mean, p_std^2); null: those of training.
    p_mean: Annotated[float | None, Range(-100, 100)] = None
    p_std: Annotated[float | None, Range(above=0, most=100)] = None

    def __post_init__(self) -> None:
        check_settings("evaluation", self)
        if not self.metrics:
            raise ConfigError(f"'evaluation.metrics' is empty; {nearest('', METRIC_FUNCTIONS)}")
        for name in self.metrics:
            METRIC_FUNCTIONS.check(name)
        if len(set(map(score_name, self.metrics))) != len(self.metrics):
            raise ConfigError(f"'evaluation.metrics' repeats a metric: {list(self.metrics)}")
        FEATURE_NETWORKS.check(self.feature_net)
        if self.feature_weights is not None and self.feature_net == BUILTIN_NET:
            raise ConfigError(
                f"'evaluation.feature_weights' is {self.feature_weights!r}, but 'evaluation.feature_net' is "
                f"{BUILTIN_NET}, whose weights come with a package; choose another network or set it to null"
            )
        if self.samples == 1:
            raise ConfigError("'evaluation.samples' is 1; it must be 0 (none) or at least 2")
