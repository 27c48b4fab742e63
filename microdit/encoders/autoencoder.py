"""Images to latents and back, through any diffusers `AutoencoderKL` folder.

B batch, H W image height and width, C latent channels, f downsampling factor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from microdit.errors import ConfigError
from microdit.files import sha256

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class AutoencoderConfig:
    """What turns pictures into latents."""

    path: str = "builtin"  # builtin (4 channels, f4) | pixels | a diffusers AutoencoderKL folder


class Autoencoder(Protocol):
    """A frozen pair of maps; latents are scaled to about unit deviation."""

    channels: int
    downsampling: int
    fingerprint: str

    def encode(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, C, H / f, W / f) float32; the posterior's mean, so the same each time."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H / f, W / f) -> (B, H, W, 3) uint8."""


def build_autoencoder(config: AutoencoderConfig, device: torch.device | str = "cpu") -> Autoencoder:
    """Opens what `config.path` names; raises ConfigError naming the file that is missing or of another kind."""
    if config.path == "pixels":
        return Pixels()
    if config.path == "builtin":
        from microdit.assets import VAE

        return KLAutoencoder(VAE, device)
    return KLAutoencoder(Path(config.path).expanduser(), device)


class Pixels:
    """No autoencoder: latents are the pixels, from -1 to 1."""

    channels = 3
    downsampling = 1
    fingerprint = "pixels"

    def encode(self, images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return _to_uint8(latents)


class KLAutoencoder:
    """A diffusers AutoencoderKL; its own scaling and shift factors are applied (z' = (z - shift) scale)."""

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        settings = _read_settings(folder)
        from diffusers import AutoencoderKL

        try:
            model = AutoencoderKL.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ConfigError(f"{folder}: can't be opened as an AutoencoderKL: {_short(error)}") from None
        self._model: Any = model.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        self._scale = float(settings.get("scaling_factor") or 1.0)
        self._shift = float(settings.get("shift_factor") or 0.0)
        self.channels = int(settings["latent_channels"])
        self.downsampling = 2 ** (len(settings["block_out_channels"]) - 1)
        self.fingerprint = sha256(folder / CONFIG, *sorted(folder.glob("diffusion_pytorch_model*.safetensors")))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        x = images.to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = x.contiguous(memory_format=torch.channels_last)
        return ((self._model.encode(x).latent_dist.mean - self._shift) * self._scale).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        z = latents.to(self._device).float() / self._scale + self._shift
        return _to_uint8(self._model.decode(z.contiguous(memory_format=torch.channels_last)).sample)


def _read_settings(folder: Path) -> dict[str, Any]:
    where = f"'autoencoder.path': {folder}"
    if not folder.is_dir():
        raise ConfigError(f"{where}: no such folder; give a diffusers AutoencoderKL folder, 'builtin' or 'pixels'")
    for name in (CONFIG, WEIGHTS):
        stem = name.split(".")[0]
        if not (folder / name).is_file() and not list(folder.glob(f"{stem}*.safetensors")):
            raise ConfigError(f"{where} has no {name}; an AutoencoderKL folder holds {CONFIG} and {WEIGHTS}")
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG}: not valid JSON: {error}") from None
    kind = settings.get("_class_name")
    if kind != "AutoencoderKL":
        raise ConfigError(f"{folder / CONFIG}: describes a {kind}, not an AutoencoderKL")
    return settings


def _to_uint8(x: Tensor) -> Tensor:  # (B, 3, H, W) in [-1, 1] -> (B, H, W, 3)
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
