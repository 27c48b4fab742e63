"""Choose the device of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.errors import ConfigError
from microdit.common.hardware import has_cuda
from microdit.config.schema import Config

if TYPE_CHECKING:
    import torch


def choose_device(config: Config) -> torch.device:
    """Return the configured device; 'auto' is a GPU if there is one.

    Raises:
        ConfigError: if a GPU is configured but missing.
    """
    import torch

    wanted = config.training.device
    if wanted == "cuda" and not has_cuda():
        raise ConfigError("'training.device' is cuda, but no CUDA device is visible; use cpu or auto")
    if wanted == "auto":
        return torch.device("cuda" if has_cuda() else "cpu")
    return torch.device(wanted)
