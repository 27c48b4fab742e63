"""The weights of networks that are too large to come along: where they lie, or exactly what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import FileLock

from microdit.common.errors import ConfigError
from microdit.common.files.atomic import atomic_path, sweep
from microdit.common.files.digests import content_digest


@dataclass(frozen=True)
class SettingNames:
    """The settings that name a network and its weights, as errors call them."""

    network: str
    weights: str


SCORING = SettingNames("evaluation.feature_net", "evaluation.feature_weights")


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    url: str
    digest: str = ""  # how its SHA-256 begins, where the name tells

    @property
    def name(self) -> str:
        return _name(self.url)


PUBLISHED: Mapping[str, Published] = {
    # torch-fidelity's conversion of the TensorFlow graph that FID is defined on
    "inception-v3": Published(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "dinov2": Published("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"),
}


def find_weights(network: str, given: str | None, keys: SettingNames) -> Path:
    """The file of `network`'s weights: `given`, or the published one where torch hub keeps it.

    Only a URL in `given` is ever fetched, once, to torch hub's folder. Raises ConfigError naming the file, where it
    comes from and where to put it.
    """
    published = PUBLISHED[network]
    if given is None:
        path = published_place(network)
        if path.is_file():
            return path
        raise ConfigError(
            f"'{keys.weights}' is null and {path} isn't there, which '{keys.network}' {network} needs: put "
            f"{published.url} there, or set '{keys.weights}' to where you have that file, or to that URL to have it "
            "fetched"
        )
    if "://" in given:
        return _fetched(given, keys.weights)
    path = Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"'{keys.weights}': {path}: no such file; '{keys.network}' {network} needs {published.name}, published at "
            f"{published.url}"
        )
    return path


def weights_identity(given: str) -> str:
    """What makes two settings of weights the same: 16 digits of a file's content, else (a URL, say) the setting."""
    path = Path(given).expanduser()
    return content_digest(path)[:16] if path.is_file() else given


def published_place(network: str) -> Path:
    """Where the published file is looked for."""
    return hub_folder() / PUBLISHED[network].name


def hub_folder() -> Path:
    """Where torch hub, and torch-fidelity through it, keep the files they fetch."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetched(url: str, key: str) -> Path:
    path = hub_folder() / _name(url)
    if not path.name:
        raise ConfigError(f"'{key}': {url} ends with no file's name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # processes of a sweep may come at once
        if path.is_file():
            return path
        sweep(path.parent)
        begins = re.search(r"-([0-9a-f]{8,})\.", path.name)  # torch hub's custom: the digest's first digits
        try:
            with atomic_path(path) as temporary:
                torch.hub.download_url_to_file(url, str(temporary), begins and begins[1], progress=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"'{key}': {url} can't be fetched to {path}: {error}") from None
    return path


def _name(url: str) -> str:
    return Path(urlsplit(url).path).name
