"""Find the weights of networks that are too large to bundle.

If weights are missing, the error names the file, its URL and where to put it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from microdit.common.errors import ConfigError
from microdit.common.files.atomic import atomic_path, sweep
from microdit.common.files.digests import content_digest


@dataclass(frozen=True)
class SettingNames:
    """Name the settings for a network and its weights, for messages."""

    network: str
    weights: str


SCORING = SettingNames("evaluation.feature_net", "evaluation.feature_weights")


@dataclass(frozen=True)
class Published:
    """Describe a file that its authors published."""

    url: str
    digest: str = ""  # first digits of its SHA-256, if the name has them

    @property
    def name(self) -> str:
        """Return the file's name."""
        return _name(self.url)


PUBLISHED: Mapping[str, Published] = {
    # torch-fidelity's conversion of the TensorFlow graph that defines FID
    "inception-v3": Published(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "dinov2": Published("https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"),
}


def find_weights(network: str, given: str | None, keys: SettingNames) -> Path:
    """Return the file of a network's weights.

    Args:
        network: a key of `PUBLISHED`.
        given: a file, or a URL that is downloaded once to torch hub's folder; None looks for the published file there.
        keys: the settings that name network and weights, for messages.

    Raises:
        ConfigError: if the file is missing; the message has the file, its URL and the target path.
    """
    published = PUBLISHED[network]
    if given is None:
        path = published_place(network)
        if path.is_file():
            return path
        raise ConfigError(
            f"'{keys.weights}' is null and {path} is missing, which '{keys.network}' {network} needs: put "
            f"{published.url} there, or set '{keys.weights}' to your copy of that file, or to that URL to "
            "download it"
        )
    if "://" in given:
        return _downloaded(given, keys.weights)
    path = Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"'{keys.weights}': {path}: no such file; '{keys.network}' {network} needs {published.name}, published at "
            f"{published.url}"
        )
    return path


def weights_identity(given: str) -> str:
    """Return 16 digits of a file's digest, or `given` itself if it is a URL."""
    path = Path(given).expanduser()
    return content_digest(path)[:16] if path.is_file() else given


def published_place(network: str) -> Path:
    """Return where the published file of a network is looked for."""
    return torch_hub_folder() / PUBLISHED[network].name


def torch_hub_folder() -> Path:
    """Return the folder in which torch hub and torch-fidelity keep downloaded files."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _downloaded(url: str, key: str) -> Path:
    import torch

    path = torch_hub_folder() / _name(url)
    if not path.name:
        raise ConfigError(f"'{key}': {url} doesn't end with a file name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # several processes of a sweep may need it
        if path.is_file():
            return path
        sweep(path.parent)
        begins = re.search(r"-([0-9a-f]{8,})\.", path.name)  # torch hub's convention: the digest's first digits
        try:
            with atomic_path(path) as temporary:
                torch.hub.download_url_to_file(url, str(temporary), begins and begins[1], progress=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"'{key}': {url} can't be downloaded to {path}: {error}") from None
    return path


def _name(url: str) -> str:
    return Path(urlsplit(url).path).name
