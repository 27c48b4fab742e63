"""Patch encoders by name.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

from typing import Any

from microdit.alignment.config import AlignmentConfig
from microdit.common.errors import ConfigError
from microdit.common.registry import Registry

ENCODER_KEY, WEIGHTS_KEY = "alignment.encoder", "alignment.weights"
TAKES_WEIGHTS = ("dinov2",)  # bundled encoders whose `takes_weights` is true

# `patch_encoders` exports it with its type.
PATCH_ENCODERS: Registry[Any] = Registry(
    ENCODER_KEY,
    {
        "none": "microdit.alignment.patch_encoders.NoEncoder",
        "efficientnet-lite0": "microdit.alignment.patch_encoders.Lite0Patches",
        "dinov2": "microdit.alignment.patch_encoders.Dinov2Patches",
    },
    base="microdit.alignment.patch_encoders.PatchEncoder",
)


def check_names(config: AlignmentConfig) -> None:
    """Check that `alignment.encoder` names a class, and that `alignment.weights` is set only for one that takes them.

    Raises:
        ConfigError: if there is none, or it takes no weights.
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
