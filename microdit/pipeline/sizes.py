"""Compare the network's sizes with those of data and encoders."""

from __future__ import annotations

from microdit.common.errors import ConfigError
from microdit.common.parsing import to_mapping
from microdit.config.schema import Config
from microdit.config.sizes import Sizes, stated_sizes


def check_stated_sizes(config: Config) -> None:
    """Raise ConfigError if the network's sizes contradict what is known of data and encoders without their weights."""
    check_sizes(config, stated_sizes(to_mapping(config)))


def check_sizes(config: Config, sizes: Sizes) -> None:
    """Raise ConfigError naming each 'model' key that disagrees with the data, and the value it must have."""
    factor, resolution = sizes.downsampling, config.data.resolution
    if factor is not None and resolution % factor:
        raise ConfigError(f"'data.resolution' is {resolution}; the autoencoder needs a multiple of {factor}")
    latents = f"in the latents of {config.data.path}" if config.data.name == "latents" else "at this data.resolution"
    expected = {
        "in_channels": (sizes.channels, "the autoencoder's number of latent channels"),
        "input_size": (None if factor is None else resolution // factor, f"the side {latents}"),
        "caption_channels": (sizes.width, "the text encoder's width"),
    }
    wrong = [
        f"'model.{key}' is {getattr(config.model, key)}, but {what} is {value}"
        for key, (value, what) in expected.items()
        if value is not None and getattr(config.model, key) != value
    ]
    if wrong:
        raise ConfigError("; ".join(wrong))
