"""Check the model settings that name registered feed-forwards, mixers and masking."""

from __future__ import annotations

from microdit.common.errors import ConfigError
from microdit.model.config import DiTConfig
from microdit.model.layers.feed_forward import FEED_FORWARDS
from microdit.model.layers.patch_mixer import MIXERS
from microdit.model.masking.registry import MASKING_METHODS


def check_model(config: DiTConfig) -> None:
    """Check the registered names, and the settings that the masking method needs.

    Raises:
        ConfigError: if a name is unknown, or the masking method does not fit the other settings.
    """
    FEED_FORWARDS.check(config.ffn.type)
    MIXERS.check(config.mixer.type)
    MASKING_METHODS.check(config.masking.method)
    if config.masking.method in MASKING_METHODS:
        MASKING_METHODS[config.masking.method].check(config)
        _check_path_drop(config)


def _check_path_drop(config: DiTConfig) -> None:
    masking = config.masking
    able = [name for name, method in MASKING_METHODS.items() if method.drops_paths]
    if masking.route.path_drop and masking.method not in able:
        raise ConfigError(
            f"'model.masking.route.path_drop' is {masking.route.path_drop}, but 'model.masking.method' "
            f"{masking.method} has no path to drop; set it to 0, or the method to {' or '.join(able)}"
        )
