"""Check the model settings that name registered feed-forwards, mixers and masking.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

from microdit.common.errors import ConfigError
from microdit.model.config import DiTConfig
from microdit.model.layers.registry import FEED_FORWARDS, MIXERS
from microdit.model.masking.registry import MASKING_METHODS
from microdit.model.masking.requirements import DROPS_PATHS, REQUIREMENTS


def check_model(config: DiTConfig) -> None:
    """Check the registered names, and the settings that the masking method needs.

    Raises:
        ConfigError: if a name is unknown, or the masking method does not fit the other settings.
    """
    FEED_FORWARDS.check(config.ffn.type)
    MIXERS.check(config.mixer.type)
    method = config.masking.method
    MASKING_METHODS.check(method)
    if method in MASKING_METHODS.bundled:
        if method in REQUIREMENTS:
            REQUIREMENTS[method](config)
    elif method in MASKING_METHODS:
        MASKING_METHODS[method].check(config)
    if method in MASKING_METHODS:
        _check_path_drop(config)


def _check_path_drop(config: DiTConfig) -> None:
    masking = config.masking
    if not masking.route.path_drop or masking.method in DROPS_PATHS:
        return
    own = [name for name in MASKING_METHODS if name not in MASKING_METHODS.bundled]
    able = [*DROPS_PATHS, *(name for name in own if MASKING_METHODS[name].drops_paths)]
    if masking.method not in able:
        raise ConfigError(
            f"'model.masking.route.path_drop' is {masking.route.path_drop}, but 'model.masking.method' "
            f"{masking.method} has no path to drop; set it to 0, or the method to {' or '.join(able)}"
        )
