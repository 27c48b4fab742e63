"""Derive network sizes from the configurations of data and encoders.

No weights are loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from microdit.common.errors import ConfigError, DataError
from microdit.common.parsing import to_mapping
from microdit.data.config import DataConfig
from microdit.data.latents.reader import read_index
from microdit.encoders.config import OF_DATA
from microdit.encoders.sizes import autoencoder_sizes, text_width
from microdit.model.config import DiTConfig


@dataclass(frozen=True)
class Sizes:
    """Sizes of the encoders; None if unknown without loading or fetching weights."""

    channels: int | None  # of the latents
    downsampling: int | None  # pixels per latent along a side
    width: int | None  # of the text encoder's token features


class HasSizes(Protocol):
    """Declare the settings of a run that decide or contain sizes.

    `microdit.config.schema.Config` has them.
    """

    @property
    def data(self) -> DataConfig: ...

    @property
    def model(self) -> DiTConfig: ...


def stated_sizes(values: Mapping[str, Any]) -> Sizes:
    """Return the sizes of the encoders that a run's settings name.

    Args:
        values: nested settings by key, with `data`, `autoencoder` and `text`.
    """
    data, autoencoder, text = values["data"], values["autoencoder"]["path"], values["text"]["path"]
    if values["text"].get("encoder") is not None:
        text = None  # a class of the user's: its width is known when it is opened
    channels, downsampling = None, None
    if data["name"] == "latents" and autoencoder == OF_DATA:
        channels, downsampling = _sizes_of_latents(data["path"])
    elif isinstance(autoencoder, str):
        channels, downsampling = autoencoder_sizes(autoencoder) or (None, None)
    return Sizes(channels, downsampling, text_width(text) if isinstance(text, str) else None)


def follow_encoders(values: dict[str, Any], given: Collection[str], downsampling: int | None) -> None:
    """Set the sizes in `values['model']` that data and encoders decide.

    Args:
        values: nested settings, changed in place.
        given: dotted keys that the user set; they are kept.
        downsampling: pixels per latent along a side, for an autoencoder whose own factor is unknown.
    """
    sizes = stated_sizes(values)
    factor, resolution = sizes.downsampling or downsampling, values["data"]["resolution"]
    whole = isinstance(resolution, int) and factor and resolution % factor == 0  # otherwise `check_sizes` raises
    decided = {
        "in_channels": sizes.channels,
        "input_size": resolution // factor if whole and factor else None,
        "caption_channels": sizes.width,
    }
    for key, value in decided.items():
        if value is not None and f"model.{key}" not in given:
            values["model"][key] = value


def check_stated_sizes(config: HasSizes) -> None:
    """Check the network's sizes without loading the weights of the encoders.

    Raises:
        ConfigError: if they differ from those of data and encoders; names each key and the value it must have.
    """
    check_sizes(config, stated_sizes(to_mapping(config)))


def check_sizes(config: HasSizes, sizes: Sizes) -> None:
    """Check the network's sizes against those of data and encoders.

    Args:
        config: the settings of the run.
        sizes: of the opened encoders; those that are None are not checked.

    Raises:
        ConfigError: if they differ; names each key and the value it must have.
    """
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


def _sizes_of_latents(path: Any) -> tuple[int | None, int | None]:
    """Return channels and downsampling factor of encoded images, None if unknown."""
    if not isinstance(path, str) or not Path(path).expanduser().is_dir():
        return None, None
    try:
        index = read_index(Path(path).expanduser())
        channels, side, _ = index["latents"]["shape"]
        return int(channels), int(index["resolution"]) // int(side)
    except (DataError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None, None  # reported when the images are opened
