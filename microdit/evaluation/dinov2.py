"""DINOv2 from the authors' checkpoint file, at 224 pixels.

Oquab et al., arXiv 2304.07193; as a measure of generated pictures: Stein et al., arXiv 2306.04675.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.errors import ConfigError
from microdit.evaluation.weights import KEY

SIDE, PATCH = 224, 14  # pixels
SIZES: Mapping[int, str] = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # by width
OFFSET = 0.1  # the authors add it to the target size when they interpolate position embeddings
RENAMED = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2."}  # the giant's SwiGLU, in timm's words


@lru_cache(maxsize=1)
def dinov2_width(path: Path, digest: str) -> int:
    """Features of the checkpoint's network; raises ConfigError where it isn't one of DINOv2's without registers."""
    return _width(_read(path), path)


@lru_cache(maxsize=1)
def open_dinov2(path: Path, digest: str) -> nn.Module:
    """Pixels (B, 3, 224, 224), normalised, to the final class token (B, F); `digest` tells a changed file apart."""
    import timm

    stored = _read(path)
    size = SIZES[_width(stored, path)]
    network = timm.create_model(f"vit_{size}_patch{PATCH}_dinov2", pretrained=False, img_size=SIDE, num_classes=0)
    stored.pop("mask_token", None)
    stored["pos_embed"] = _positions(stored["pos_embed"])
    for old, new in RENAMED.items():
        stored = {key.replace(old, new): value for key, value in stored.items()}
    try:
        network.load_state_dict(stored, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"'{KEY}': {path}: not DINOv2's {size} ViT: {' '.join(str(error).split())[:300]}") from None
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a broken or foreign file makes of the unpickler
        raise ConfigError(f"'{KEY}': {path} can't be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("pos_embed"), Tensor):
        raise ConfigError(f"'{KEY}': {path} is no checkpoint of DINOv2: it has no 'pos_embed'")
    return dict(stored)


def _width(stored: Mapping[str, Tensor], path: Path) -> int:
    width = stored["pos_embed"].shape[-1]
    if width not in SIZES or "register_tokens" in stored:
        kind = " with registers" if "register_tokens" in stored else ""
        known = ", ".join(map(str, SIZES))
        raise ConfigError(f"'{KEY}': {path}: a ViT of width {width}{kind}; DINOv2's without registers have {known}")
    return int(width)


def _positions(stored: Tensor) -> Tensor:
    """Position embeddings (1, 1 + M^2, F) for 16 x 16 patches, as the authors' code interpolates them."""
    side, width = SIDE // PATCH, stored.shape[-1]
    own = math.isqrt(stored.shape[1] - 1)
    if own == side:
        return stored
    grid = stored[:, 1:].float().reshape(1, own, own, width).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / own
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat((stored[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, width)), dim=1)
