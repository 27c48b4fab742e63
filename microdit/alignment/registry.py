"""Patch encoders by name.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

from microdit.alignment.config import AlignmentConfig
from microdit.common.errors import ConfigError
from microdit.common.registry import Registry
from microdit.encoders.config import LITE0_SIDE

ENCODER_KEY, WEIGHTS_KEY = "alignment.encoder", "alignment.weights"
TAKES_WEIGHTS = ("dinov2",)  # bundled encoders whose `takes_weights` is true
LITE0 = "efficientnet-lite0"
LITE0_MAPS = ((2, 16), (4, 24), (8, 40), (16, 112), (32, 320))  # stride and channels of its feature maps

# `patch_encoders` exports it with its type.
PATCH_ENCODERS: Registry[Any] = Registry(
    ENCODER_KEY,
    {
        "none": "microdit.alignment.patch_encoders.NoEncoder",
        LITE0: "microdit.alignment.patch_encoders.Lite0Patches",
        "dinov2": "microdit.alignment.patch_encoders.Dinov2Patches",
    },
    base="microdit.alignment.patch_encoders.PatchEncoder",
)


def check_names(config: AlignmentConfig) -> None:
    """Check `alignment.encoder`, and that `alignment.weights` is set only if it fits.

    Raises:
        ConfigError: if the encoder does not exist, or takes no weights although some are given.
    """
    name = config.encoder
    PATCH_ENCODERS.check_importable(name)
    if config.weights is None or name in TAKES_WEIGHTS:
        return
    if name not in PATCH_ENCODERS.bundled and PATCH_ENCODERS.resolve(name).takes_weights:
        return
    own = [other for other in PATCH_ENCODERS if other not in PATCH_ENCODERS.bundled]
    taking = ", ".join([*TAKES_WEIGHTS, *(other for other in own if PATCH_ENCODERS[other].takes_weights)])
    raise ConfigError(
        f"'{WEIGHTS_KEY}' is '{config.weights}', but '{ENCODER_KEY}' is {name}, which takes none; set '{WEIGHTS_KEY}' "
        f"to null, or '{ENCODER_KEY}' to {taking} (in a study, give both to the same arm)"
    )


def lite0_map(side: int) -> int:
    """Return the index in `LITE0_MAPS` of the map whose side is nearest in ratio.

    Args:
        side: patches per side of the network's grid.
    """
    distances = [abs(math.log(LITE0_SIDE / stride / side)) for stride, _ in LITE0_MAPS]
    return distances.index(min(distances))


def feature_width(config: AlignmentConfig, side: int) -> int:
    """Return the number of features of a patch; 0 if there is nothing to align with.

    An encoder of the user's, or one whose width depends on its weights, is built, which loads PyTorch.

    Args:
        config: the alignment term.
        side: patches per side of the network's grid.
    """
    if not config.weight or config.encoder == "none":
        return 0
    if config.encoder == LITE0:
        return LITE0_MAPS[lite0_map(side)][1]
    return int(PATCH_ENCODERS.resolve(config.encoder).from_config(config, side, "cpu").width)
