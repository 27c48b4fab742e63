"""Load frozen networks that return a feature vector per patch of a clean image.

Hidden tokens are aligned with these features. B batch, H W image height and width, G patches per side, T patches (T = G
* G), E features of a patch.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microdit.alignment import registry
from microdit.alignment.config import AlignmentConfig
from microdit.alignment.registry import LITE0, LITE0_MAPS, lite0_map
from microdit.common.files.digests import content_digest
from microdit.common.registry import Registry
from microdit.encoders.dinov2 import (
    NAME,
    PATCH,
    PUBLISHED_WIDTH,
    SIDE,
    build_dinov2,
    check_dinov2,
    dinov2_normalized,
    dinov2_width,
)
from microdit.encoders.efficientnet_lite0 import (
    CPU_CHUNK,
    build_lite0,
    fold_batch_norm,
    lite0_digest,
    lite0_pixels,
)
from microdit.encoders.pretrained_weights import PUBLISHED, SettingNames, find_weights, published_place

KEYS = SettingNames(registry.ENCODER_KEY, registry.WEIGHTS_KEY)


class PatchEncoder:
    """Encode images as one feature vector per patch; base class of all encoders.

    Encoders are frozen. Load weights at the first `encode`, because counting costs builds an encoder too.

    Args:
        side: G.
        device: where the encoder runs.
    """

    width: int  # E; 0: nothing to align with
    takes_weights = False  # whether `from_config` reads `alignment.weights`; if not, setting it is an error

    def __init__(self, side: int, device: torch.device | str) -> None:
        self.side = side
        self.device = torch.device(device)

    @classmethod
    def from_config(cls, config: AlignmentConfig, side: int, device: torch.device | str) -> PatchEncoder:
        """Build the configured encoder; override it if the class reads more settings.

        Args:
            config: settings of the alignment.
            side: G.
            device: where the encoder runs.

        Returns:
            An encoder whose weights are not loaded yet.
        """
        return cls(side, device)

    def check(self) -> None:
        """Check that everything that `encode` needs exists, without encoding.

        Raises:
            ConfigError: if something is missing or broken.
        """

    @property
    def fingerprint(self) -> str:
        """Return a text that changes with anything that determines the features.

        The grid is not included. It is part of the key of cached features.
        """
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        """Return the features of images, of which only directions matter, not lengths.

        Args:
            images: (B, H, W, 3) uint8.

        Returns:
            (B, T, E), patches row by row.
        """
        raise NotImplementedError


class NoEncoder(PatchEncoder):
    """Provide no features, for runs without alignment."""

    width = 0


class Lite0Patches(PatchEncoder):
    """Encode patches with ImageNet EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946).

    It is the network whose pooled features `fd` compares. Images are scaled to 224 x 224, its training size. Of its
    feature maps (112, 56, 28, 14, 7 per side), the one nearest to G in ratio is resized to G x G bilinearly, with
    antialiasing if it shrinks. About 40 images/s on one CPU thread.
    """

    def __init__(self, side: int, device: torch.device | str) -> None:
        super().__init__(side, device)
        self.map = lite0_map(side)
        self.width = LITE0_MAPS[self.map][1]
        self._network: nn.Module | None = None

    @property
    def fingerprint(self) -> str:
        return f"{LITE0}-map{self.map}-{lite0_digest()}"

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        if self._network is None:
            self._network = fold_batch_norm(build_lite0()).to(self.device).to(memory_format=torch.channels_last)
        chunk = CPU_CHUNK if self.device.type == "cpu" else len(images)
        return torch.cat([self._features(part.to(self.device)) for part in images.split(chunk)])

    def _features(self, images: Tensor) -> Tensor:  # (B, H, W, 3) uint8 -> (B, T, E)
        pixels = lite0_pixels(images.permute(0, 3, 1, 2))
        (found,) = self._network.forward_intermediates(  # type: ignore[union-attr, operator]
            pixels, indices=[self.map], stop_early=True, intermediates_only=True
        )
        return _on_grid(found, self.side)


class Dinov2Patches(PatchEncoder):
    """Encode patches with DINOv2 (Oquab et al., arXiv 2304.07193), as REPA does.

    The features are its patch tokens after the last norm. A token covers 14 x 14 pixels. Images are scaled bicubically
    to 14 G pixels per side, so that there is one token per patch; if G is below 16, to 224, and the 16 x 16 tokens are
    resized to G x G as Lite0's maps are. Costs can be counted without the published file, because its width is known.

    Args:
        side: G.
        device: where the encoder runs.
        weights: as in `find_weights`.

    Raises:
        ConfigError: if the file named by `weights` is missing or is not DINOv2's.
    """

    takes_weights = True

    def __init__(self, side: int, device: torch.device | str, weights: str | None = None) -> None:
        super().__init__(side, device)
        self.given = weights
        self.pixels = max(PATCH * side, SIDE)
        published = weights in (None, PUBLISHED[NAME].url)
        absent = published and not published_place(NAME).is_file()
        self.width = PUBLISHED_WIDTH if absent else dinov2_width(*self._file(), KEYS.weights)
        self._network: nn.Module | None = None

    @classmethod
    def from_config(cls, config: AlignmentConfig, side: int, device: torch.device | str) -> PatchEncoder:
        return cls(side, device, config.weights)

    def check(self) -> None:
        check_dinov2(*self._file(), KEYS.weights)

    @property
    def fingerprint(self) -> str:
        return f"{NAME}-bicubic-{self.pixels}-{self._file()[1]}"

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        if self._network is None:
            self._network = build_dinov2(self._file()[0], self.pixels, KEYS.weights).to(self.device)
        x = images.to(self.device).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, size=(self.pixels, self.pixels), mode="bicubic", align_corners=False, antialias=True)
        tokens = self._network.forward_features(dinov2_normalized(x))[:, 1:]  # type: ignore[operator] # no class token
        patches = self.pixels // PATCH
        return _on_grid(tokens.transpose(1, 2).unflatten(2, (patches, patches)), self.side)

    def _file(self) -> tuple[Path, str]:
        """Return the file of the weights and its digest.

        Raises:
            ConfigError: if it is missing.
        """
        path = find_weights(NAME, self.given, KEYS)
        return path, content_digest(path)


def _on_grid(features: Tensor, side: int) -> Tensor:
    """Return feature maps (B, E, H, W) resized bilinearly to a grid, (B, T, E)."""
    grid = F.interpolate(features, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
    return grid.flatten(2).transpose(1, 2)


PATCH_ENCODERS: Registry[type[PatchEncoder]] = registry.PATCH_ENCODERS
register_patch_encoder = PATCH_ENCODERS.register


def encoder_class(config: AlignmentConfig) -> type[PatchEncoder]:
    """Return the class that `alignment.encoder` names.

    Raises:
        ConfigError: if there is none, or `alignment.weights` is set for an encoder without weights.
    """
    registry.check_names(config)
    return PATCH_ENCODERS.resolve(config.encoder)


def build_encoder(config: AlignmentConfig, side: int, device: torch.device | str = "cpu") -> PatchEncoder:
    """Build the configured encoder.

    Args:
        config: names the encoder.
        side: G.
        device: where it runs.

    Returns:
        The encoder; `NoEncoder` if the weight of the alignment is 0.

    Raises:
        ConfigError: if the encoder is unknown, or its weights are missing or do not fit.
    """
    role = encoder_class(config) if config.weight else NoEncoder
    return role.from_config(config, side, device)


def check_encoder(config: AlignmentConfig, side: int) -> None:
    """Check that everything that the configured encoder needs exists.

    Args:
        config: names the encoder.
        side: G.

    Raises:
        ConfigError: if something is missing or has another format.
    """
    build_encoder(config, side).check()
