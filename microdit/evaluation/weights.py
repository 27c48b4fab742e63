"""The weights of scoring networks that are too large to come along: where they lie, or exactly what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import FileLock

from microdit.errors import ConfigError

KEY = "evaluation.feature_weights"


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


def find_weights(network: str, given: str | None) -> Path:
    """The file of `network`'s weights: `given`, or the published one where torch hub keeps it.

    Only a URL in `given` is ever fetched, once, to torch hub's folder. Raises ConfigError naming the file, where it
    comes from and where to put it.
    """
    published = PUBLISHED[network]
    if given is None:
        path = hub_folder() / published.name
        if path.is_file():
            return path
        raise ConfigError(
            f"'{KEY}' is null and {path} isn't there, which 'evaluation.feature_net' {network} needs: put "
            f"{published.url} there, or set '{KEY}' to where you have that file, or to that URL to have it fetched"
        )
    if "://" in given:
        return _fetched(given)
    path = Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"'{KEY}': {path}: no such file; 'evaluation.feature_net' {network} needs {published.name}, published at "
            f"{published.url}"
        )
    return path


def hub_folder() -> Path:
    """Where torch hub, and torch-fidelity through it, keep the files they fetch."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetched(url: str) -> Path:
    path = hub_folder() / _name(url)
    if not path.name:
        raise ConfigError(f"'{KEY}': {url} ends with no file's name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # processes of a sweep may come at once
        if path.is_file():
            return path
        begins = re.search(r"-([0-9a-f]{8,})\.", path.name)  # torch hub's custom: the digest's first digits
        try:
            torch.hub.download_url_to_file(url, str(path), begins and begins[1], progress=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"'{KEY}': {url} can't be fetched to {path}: {error}") from None
    return path


def _name(url: str) -> str:
    return Path(urlsplit(url).path).name
