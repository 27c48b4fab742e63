"""Encode images as latents and decode them.

Any diffusers `AutoencoderKL` from a folder or the model hub works. B batch, H W image height and width, C latent
channels, f downsampling factor.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.files.digests import sha256
from microdit.common.files.text import read_json
from microdit.common.finite import require_finite
from microdit.encoders.config import OF_DATA, VAE, AutoencoderConfig
from microdit.encoders.hub import hub_folder, short
from microdit.encoders.sizes import AUTOENCODER_CONFIG, PIXELS_CHANNELS, PIXELS_DOWNSAMPLING

log = logging.getLogger(__name__)

PATH_KEY = "autoencoder.path"
CONFIG, WEIGHTS = AUTOENCODER_CONFIG, "diffusion_pytorch_model.safetensors"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Autoencoder(Protocol):
    """Encode and decode images with a frozen network.

    Latents are scaled to about unit standard deviation. Implementations have these sizes and a digest of everything
    that determines the latents.
    """

    channels: int
    downsampling: int
    fingerprint: str

    def encode(self, images: Tensor) -> Tensor:
        """Encode images as the mean of the posterior.

        Args:
            images: (B, H, W, 3) uint8; H and W are multiples of f.

        Returns:
            (B, C, H / f, W / f) float32.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents.

        Args:
            latents: (B, C, H / f, W / f).

        Returns:
            (B, H, W, 3) uint8.

        Raises:
            DivergenceError: if a pixel is NaN or infinite.
        """

    def describe(self) -> dict[str, Any]:
        """Return the facts stored with encoded data.

        Latents of autoencoders with different facts are not interchangeable.
        """


def build_autoencoder(config: AutoencoderConfig, device: torch.device | str = "cpu") -> Autoencoder:
    """Open the autoencoder that `config.path` names.

    Args:
        config: path and precision.
        device: where it runs.

    Returns:
        The autoencoder with its weights.

    Raises:
        ConfigError: if a file is missing or has another format.
    """
    if config.path == "pixels":
        return Pixels()
    if config.path == OF_DATA:
        raise ConfigError(
            f"'{PATH_KEY}' is '{OF_DATA}', the autoencoder of precomputed latents, but 'data.name' isn't latents"
        )
    return KLAutoencoder(autoencoder_folder(config.path), device, config.precision)


def autoencoder_folder(path: str) -> Path:
    """Return the folder that `path` names.

    OWNER/NAME[/SUBFOLDER] is looked up in the model hub's cache or downloaded. A local folder need not exist.

    Raises:
        ConfigError: if the repository can't be reached; the message lists the files needed.
    """
    if path == "builtin":
        return VAE
    folder = Path(path).expanduser()
    words = path.split("/")
    if folder.exists() or path.startswith(("/", ".", "~")) or len(words) not in (2, 3) or not all(words):
        return folder
    repository, subfolder = "/".join(words[:2]), "/".join(words[2:])
    remedy = (
        f"there is no local folder '{path}' either; without a connection, put its {CONFIG} and {WEIGHTS} (from "
        f"{subfolder or 'the top folder, or vae'}) into a folder and give that as '{PATH_KEY}'"
    )
    return hub_folder(repository, CONFIG, ("diffusion_pytorch_model*.safetensors",), PATH_KEY, remedy, subfolder)


class Pixels:
    """Use the pixels, from -1 to 1, as latents."""

    channels = PIXELS_CHANNELS
    downsampling = PIXELS_DOWNSAMPLING
    fingerprint = "pixels"

    def encode(self, images: Tensor) -> Tensor:
        """Scale images to [-1, 1]; see `Autoencoder.encode`.

        Args:
            images: (B, H, W, 3) uint8.

        Returns:
            (B, 3, H, W) float32.
        """
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Clip latents to [-1, 1] and round them to pixels; see `Autoencoder.decode`.

        Args:
            latents: (B, 3, H, W).

        Returns:
            (B, H, W, 3) uint8.
        """
        return _to_uint8(latents)

    def describe(self) -> dict[str, Any]:
        """Return class and sizes."""
        return {"class": "pixels", "fingerprint": self.fingerprint, "channels": 3, "downsampling": 1}


class KLAutoencoder:
    """Run a diffusers AutoencoderKL: z' = ((z - mean) / std - shift) scale.

    `scaling_factor` and `shift_factor` are as in diffusers' Stable Diffusion 3 and FLUX pipelines, `latents_mean` and
    `latents_std` as in its SDXL pipeline. Missing ones have no effect.

    Args:
        folder: has the configuration and the weights.
        device: where it runs.
        precision: "fp32", "bf16" or "fp16"; fp16 becomes fp32 if the model's configuration sets force_upcast.

    Raises:
        ConfigError: if a file is missing or has another format.
    """

    def __init__(self, folder: Path, device: torch.device | str, precision: str = "fp32") -> None:
        if precision == "fp16" and _read_settings(folder).get("force_upcast", True):  # diffusers' default
            log.info("%s: its configuration sets force_upcast, so it runs in fp32 instead of fp16", folder)
            precision = "fp32"
        self._precision, self._dtype = precision, PRECISIONS[precision]
        self._model: Any = _load(folder, self._dtype).to(device).eval().requires_grad_(False)
        settings = self._model.config  # with diffusers' defaults, such as scaling_factor 0.18215
        self._device = torch.device(device)
        self.channels = int(settings.latent_channels)
        self.downsampling = 2 ** (len(settings.block_out_channels) - 1)
        self._scale = float(settings.get("scaling_factor") or 1.0)
        self._shift = float(settings.get("shift_factor") or 0.0)
        self._mean = self._per_channel(settings, "latents_mean", 0.0, folder)
        self._std = self._per_channel(settings, "latents_std", 1.0, folder)
        weights = sha256(folder / CONFIG, *_weights(folder))
        self.fingerprint = weights if self._dtype == torch.float32 else f"{weights}-{precision}"

    def _per_channel(self, settings: Mapping[str, Any], key: str, default: float, folder: Path) -> Tensor:
        """Return a per-channel setting, (1, C, 1, 1)."""
        values = settings.get(key) or [default] * self.channels
        if len(values) != self.channels:
            raise ConfigError(
                f"{folder / CONFIG}: '{key}' has {len(values)} values for {self.channels} latent channels"
            )
        return torch.tensor(values, dtype=torch.float32, device=self._device).view(1, -1, 1, 1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images as normalized means of the posterior; see `Autoencoder.encode`.

        Args:
            images: (B, H, W, 3) uint8.

        Returns:
            (B, C, H / f, W / f) float32.
        """
        x = images.to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = x.to(self._dtype).contiguous(memory_format=torch.channels_last)
        z = self._model.encode(x).latent_dist.mean.float()
        return (((z - self._mean) / self._std - self._shift) * self._scale).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Undo the normalization and decode; see `Autoencoder.decode`.

        Args:
            latents: (B, C, H / f, W / f).

        Returns:
            (B, H, W, 3) uint8.
        """
        z = (latents.to(self._device).float() / self._scale + self._shift) * self._std + self._mean
        z = z.to(self._dtype).contiguous(memory_format=torch.channels_last)
        return _to_uint8(self._model.decode(z).sample)

    def describe(self) -> dict[str, Any]:
        """Return class, digest, precision, sizes and normalization."""
        return {
            "class": "AutoencoderKL",
            "fingerprint": self.fingerprint,
            "precision": self._precision,
            "channels": self.channels,
            "downsampling": self.downsampling,
            "scaling_factor": self._scale,
            "shift_factor": self._shift,
            "latents_mean": self._mean.flatten().tolist() if self._mean.any() else None,
            "latents_std": self._std.flatten().tolist() if (self._std != 1).any() else None,
        }


def _read_settings(folder: Path) -> dict[str, Any]:
    where = f"'{PATH_KEY}': {folder}"
    if not folder.is_dir():
        raise ConfigError(
            f"{where}: no such folder; give a diffusers AutoencoderKL folder, its hub name (OWNER/NAME or "
            "OWNER/NAME/SUBFOLDER), 'builtin' or 'pixels'"
        )
    if not (folder / CONFIG).is_file():
        if (folder / "vae" / CONFIG).is_file():
            raise ConfigError(f"{where} has no {CONFIG}, but its folder vae has one: give {folder / 'vae'}")
        raise ConfigError(f"{where} has no {CONFIG}; an AutoencoderKL folder has {CONFIG} and {WEIGHTS}")
    if not _weights(folder):
        pickles = [path.name for path in sorted(folder.glob("*")) if path.suffix in (".bin", ".pt", ".ckpt", ".pth")]
        why = f" ({pickles[0]} is a pickle, which could execute code, and is not opened)" if pickles else ""
        raise ConfigError(f"{where} has no {WEIGHTS}{why}; an AutoencoderKL folder has {CONFIG} and {WEIGHTS}")
    try:
        settings = dict(read_json(folder / CONFIG, ConfigError))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / CONFIG}: not a mapping of settings ({error})") from None
    kind = settings.get("_class_name")
    if kind != "AutoencoderKL":
        raise ConfigError(f"{folder / CONFIG}: describes a {kind}, not an AutoencoderKL")
    return settings


def _weights(folder: Path) -> list[Path]:
    """Return the files to load: an fp16 variant only if there is no other."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    return sorted(folder.glob("diffusion_pytorch_model*.safetensors"))


def _load(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKL

    _read_settings(folder)
    variant = None
    if not (folder / WEIGHTS).is_file() and not list(folder.glob("*.index.json")):
        variant = _weights(folder)[0].name.removeprefix("diffusion_pytorch_model.").removesuffix(".safetensors")
    try:
        model, report = AutoencoderKL.from_pretrained(
            folder, local_files_only=True, torch_dtype=dtype, use_safetensors=True, variant=variant or None,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # loaders raise almost any type for a damaged file
        raise ConfigError(f"'{PATH_KEY}': {folder}: can't be opened as an AutoencoderKL: {short(error)}") from None
    absent, wrong = sorted(report["missing_keys"]), report["mismatched_keys"]
    if absent or wrong:  # diffusers would initialize them at random
        first = absent[0] if absent else wrong[0][0]
        raise ConfigError(
            f"'{PATH_KEY}': {folder}: {len(absent) + len(wrong)} tensors are missing or differ in shape from {CONFIG}, "
            f"such as {first}"
        )
    return model


def _to_uint8(x: Tensor) -> Tensor:  # (B, 3, H, W) in [-1, 1] -> (B, H, W, 3)
    require_finite(x, "decoded images")  # the conversion to uint8 would hide NaN
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
