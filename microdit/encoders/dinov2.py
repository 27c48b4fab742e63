"""Load DINOv2 from the authors' checkpoint file.

Images may have any size that is a multiple of its patches. Oquab et al., arXiv 2304.07193; as a metric of generated
images: Stein et al., arXiv 2306.04675. B batch, M patches per side, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.common.errors import CheckpointError, ConfigError
from microdit.common.files.torch_archive import read_torch_file
from microdit.encoders.pretrained_weights import SCORING

NAME = "dinov2"  # in `pretrained_weights.PUBLISHED`
SIDE, PATCH = 224, 14  # pixels per side of a scored image, and of a patch
SIZES: Mapping[int, str] = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by width
PUBLISHED_WIDTH = 1024  # of the network in `PUBLISHED`
POSITION_OFFSET = 0.1  # the authors add it to the target size when they interpolate position embeddings
RENAMED = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}  # the giant's SwiGLU: the authors' to timm's names
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@lru_cache(maxsize=4)
def dinov2_width(path: Path, digest: str, key: str) -> int:
    """Return the feature width of a checkpoint's network.

    Args:
        path: the checkpoint.
        digest: of its content, so that a changed file is read again.
        key: the setting that names it, for messages.

    Raises:
        ConfigError: if it isn't a DINOv2 checkpoint without registers.
    """
    return _width(_read(path, key, shapes=True), path, key)


@lru_cache(maxsize=4)
def check_dinov2(path: Path, digest: str, key: str) -> None:
    """Check a checkpoint's tensor names and shapes.

    Args:
        path: the checkpoint.
        digest: of its content, so that a changed file is read again.
        key: the setting that names it, for messages.

    Raises:
        ConfigError: if `build_dinov2` would reject them.
    """
    _network(_read(path, key, shapes=True), SIDE, path, key)


@lru_cache(maxsize=1)
def open_dinov2(path: Path, digest: str) -> nn.Module:
    """Return the scoring network, cached until its file changes; see `build_dinov2`.

    Args:
        path: the checkpoint.
        digest: of its content, so that a changed file is read again.

    Raises:
        ConfigError: as `build_dinov2`.
    """
    return build_dinov2(path, SIDE, SCORING.weights)


def build_dinov2(path: Path, side: int, key: str) -> nn.Module:
    """Return a network from normalized pixels to the final class token.

    It maps (B, 3, `side`, `side`) to (B, F); its `forward_features` returns (B, 1 + M^2, F), the class token and the
    patch tokens.

    Args:
        path: the checkpoint.
        side: image size in pixels, a multiple of 14.
        key: the setting that names the file, for messages.

    Raises:
        ConfigError: if the file isn't a DINOv2 checkpoint without registers.
    """
    return _network(_read(path, key), side, path, key)


def dinov2_normalized(pixels: Tensor) -> Tensor:
    """Normalize pixels by ImageNet's mean and standard deviation.

    Args:
        pixels: (B, 3, H, W) float in [0, 255].

    Returns:
        The same shape.
    """
    mean, std = (255 * pixels.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def _network(stored: dict[str, Tensor], side: int, path: Path, key: str) -> nn.Module:
    import timm

    size = SIZES[_width(stored, path, key)]
    with torch.device("meta"):  # skips the random initialization
        network = timm.create_model(f"vit_{size}_patch{PATCH}_dinov2", pretrained=False, img_size=side, num_classes=0)
    stored.pop("mask_token", None)
    stored["pos_embed"] = _positions(stored["pos_embed"], side // PATCH)
    for old, new in RENAMED.items():
        stored = {name.replace(old, new): value for name, value in stored.items()}
    try:
        network.load_state_dict({name: value.float() for name, value in stored.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"'{key}': {path}: not DINOv2's {size} ViT: {' '.join(str(error).split())[:300]}") from None
    return network.eval().requires_grad_(False)


def _read(path: Path, key: str, shapes: bool = False) -> dict[str, Tensor]:
    """Return the file's tensors, without values if only `shapes` are needed."""
    try:
        stored = read_torch_file(path, values=not shapes)
    except CheckpointError as error:
        raise ConfigError(f"'{key}': {path} can't be read: {str(error).removeprefix(f'{path}: ')}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("pos_embed"), Tensor):
        raise ConfigError(f"'{key}': {path} is not a checkpoint of DINOv2: it has no 'pos_embed'")
    return dict(stored)


def _width(stored: Mapping[str, Tensor], path: Path, key: str) -> int:
    width = stored["pos_embed"].shape[-1]
    if width not in SIZES or "register_tokens" in stored:
        kind = " with registers" if "register_tokens" in stored else ""
        known = ", ".join(map(str, SIZES))
        raise ConfigError(f"'{key}': {path}: a ViT of width {width}{kind}; DINOv2 without registers has {known}")
    return int(width)


def _positions(stored: Tensor, side: int) -> Tensor:
    """Return position embeddings (1, 1 + M^2, F), resized as in the authors' code."""
    width = stored.shape[-1]
    own = math.isqrt(stored.shape[1] - 1)
    if own == side:
        return stored
    grid = stored[:, 1:].float().reshape(1, own, own, width).permute(0, 3, 1, 2)
    scale = (side + POSITION_OFFSET) / own
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat((stored[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, width)), dim=1)
