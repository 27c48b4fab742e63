"""What the bundled masking methods require of the other settings.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from microdit.common.errors import ConfigError
from microdit.model.config import DiTConfig


def decoder_sizes(config: DiTConfig) -> tuple[int, int]:
    """Return the sizes of MaskDiT's decoder.

    Returns:
        Its width, and the width of its heads.
    """
    decoder = config.masking.decoder
    return (
        config.width if decoder.width is None else decoder.width,
        config.head_dim if decoder.head_dim is None else decoder.head_dim,
    )


def check_decoder(config: DiTConfig) -> None:
    """Check the sizes of MaskDiT's decoder.

    Raises:
        ConfigError: if its width is not whole heads, or does not fit the position embedding.
    """
    width, head_dim = decoder_sizes(config)
    if width % head_dim or width % 4:
        raise ConfigError(
            f"'model.masking.decoder.width' is {width}; it must be whole heads of {head_dim} and a multiple of 4"
        )


def check_route(config: DiTConfig) -> None:
    """Check the blocks that a route leaves out.

    Raises:
        ConfigError: if the network has fewer blocks than see all patches.
    """
    route = config.masking.route
    if route.before + route.after > config.depth:
        raise ConfigError(
            f"'model.masking.route' has {route.before} blocks before and {route.after} after it, which are more than "
            f"'model.depth' ({config.depth})"
        )


REQUIREMENTS: Mapping[str, Callable[[DiTConfig], None]] = {
    "maskdit": check_decoder,
    "routing": check_route,
    "sprint": check_route,
}
DROPS_PATHS = ("sprint",)  # methods whose `drops_paths` is true
USES_MIXER = ("deferred",)  # methods whose `uses_mixer` is true
