"""Load trained weights with the frozen networks that they need, and draw images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from microdit.common.errors import CheckpointError, ConfigError
from microdit.common.files.atomic import atomic_path
from microdit.common.files.tensors import read_tensors, write_tensors
from microdit.common.files.text import check_characters
from microdit.common.hardware import prepare_device
from microdit.common.parsing import override, parse, to_mapping
from microdit.config.device import choose_device
from microdit.config.schema import Config, config_from_mapping, load_config, save_config
from microdit.config.sizes import Sizes, check_sizes
from microdit.diffusion import GuidanceInterval, Objective, SamplerConfig, StepCallback, build_objective
from microdit.encoders.autoencoder import Autoencoder
from microdit.encoders.text import TextEncoder, build_text_encoder
from microdit.encoders.text_record import TextRecord, check_features, recorded_text
from microdit.model import DiT
from microdit.pipeline.generate import generate
from microdit.pipeline.inputs import open_autoencoder
from microdit.training.run_files import WEIGHTS

CONFIG = "config.yaml"
SIGMA_DATA = "sigma_data"  # stored in float64: rounding to float32 would change scores in their last digits
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class Pipeline:
    """Generate images of captions with a network, its autoencoder and text encoder.

        pipe = Pipeline.from_pretrained("runs/demo")
        images = pipe(["a cat"], num_samples=4, steps=18, guidance=2.0, seed=0)

    Attributes:
        config: the run's settings.
        denoiser: the network with averaged weights.
        autoencoder: decodes latents to images.
        text_encoder: encodes captions.
        text: which text features the weights were trained on; None if unknown.
    """

    def __init__(
        self,
        config: Config,
        denoiser: Objective,
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        text: TextRecord | None = None,
    ) -> None:
        self.config = config
        self.denoiser = denoiser
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.text = text

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        config: Config | None = None,
        overrides: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> Pipeline:
        """Load a run's folder, an exported folder or a .safetensors file.

        `microdit import` and `save_pretrained` write exported folders.

        Args:
            source: the folder or file.
            config: the settings; None reads config.yaml in the folder, or beside the file.
            overrides: `key=value` words that change them, such as "text.path=/models/clip".
            device: where to compute; None: `training.device`.

        Returns:
            The pipeline, in float32.

        Raises:
            ConfigError: if settings are missing or don't fit the encoders.
            CheckpointError: if the weights are missing, damaged or of another architecture.
        """
        weights = Path(source)
        if weights.suffix != ".safetensors" or weights.is_dir():
            weights = weights / WEIGHTS
        if config is None:
            config = _config_beside(weights, Path(source))
        if overrides:
            values = to_mapping(config)
            override(values, overrides, "overrides")
            config = config_from_mapping(values, str(source))
        place = choose_device(config) if device is None else _checked_device(device)
        prepare_device(place, config.training.threads)
        denoiser = load_denoiser(config, weights).to(place)
        autoencoder, text_encoder = open_autoencoder(config, place), build_text_encoder(config.text, place)
        check_sizes(config, Sizes(autoencoder.channels, autoencoder.downsampling, text_encoder.width))
        return cls(config, denoiser, autoencoder, text_encoder, recorded_text(weights))

    def __call__(
        self,
        prompts: str | Sequence[str],
        num_samples: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        sampler: str | SamplerConfig | None = None,
        guidance_by: str | None = None,
        guidance_interval: GuidanceInterval | tuple[float, float | None] | None = None,
        batch_size: int | None = None,
        callback: StepCallback | None = None,
    ) -> list[Image.Image]:
        """Draw images of captions; what is left out is as in `config.sampler`.

        Args:
            prompts: one caption, or several.
            num_samples: images per caption.
            steps: sampler steps.
            guidance: scale of classifier-free guidance; 1 is none.
            seed: of the initial noise. Image n starts from the same noise whatever the batch size and the captions.
            sampler: a sampler's name, such as "euler", or all settings.
            guidance_by: what the weaker prediction lacks: "caption" or "path_drop".
            guidance_interval: (low, high): guidance only if low < sigma <= high; high None: no upper end.
            batch_size: images computed at once; None: the fastest on the device.
            callback: called as (step, steps, latents (B, C, H, W) float64) after each step of each batch.

        Returns:
            `num_samples` images of the first caption, then those of the next.

        Raises:
            ConfigError: if a setting is impossible or doesn't fit the network.
            DivergenceError: if a sample is not finite.
        """
        captions = [prompts] if isinstance(prompts, str) else list(prompts)
        for number, caption in enumerate(captions, 1):
            check_characters(caption, f"caption {number}", ConfigError)
        for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        settings = self._sampler(sampler, steps, guidance, guidance_by, guidance_interval)
        if not captions:
            return []
        features = self.text_encoder.encode(captions).repeat_interleave(num_samples, 0)
        pixels = generate(
            self.denoiser, self.autoencoder, features, settings, seed, batch_size=batch_size, callback=callback
        )
        return [Image.fromarray(image) for image in pixels]

    @property
    def device(self) -> torch.device:
        """Return the device that computes."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of the network's matrices."""
        return next(parameter.dtype for parameter in self.denoiser.parameters() if parameter.ndim > 1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Move to a device, and convert the network's matrices to a precision.

            pipe = Pipeline.from_pretrained("runs/demo").to("cuda", dtype=torch.bfloat16)

        At 16 bits, the network computes under autocast. Norms, the autoencoder and the text encoder keep their
        precision. Weights that were rounded to 16 bits stay rounded.

        Args:
            device: such as "cuda" or "cuda:1"; None: the current one.
            dtype: torch.float32, torch.bfloat16 or torch.float16; None: the current one.

        Returns:
            This pipeline, changed in place.

        Raises:
            ConfigError: if there is no such device, or `dtype` is another.
        """
        if dtype is not None and dtype not in PRECISIONS:
            raise ConfigError(f"dtype is {dtype}; it must be one of {', '.join(map(str, PRECISIONS))}")
        place = self.device if device is None else _checked_device(device)
        if place.type != self.device.type or place.index not in (None, self.device.index):
            self.denoiser.to(place)
            self.autoencoder = open_autoencoder(self.config, place)
            self.text_encoder = build_text_encoder(self.config.text, place)
        self._set_precision(dtype or self.dtype)
        return self

    def save_pretrained(self, folder: Path | str) -> None:
        """Write weights and settings, which `from_pretrained` reads bit for bit.

        The precision is not stored; call `to` again after loading.

        Args:
            folder: created if needed; its model.safetensors and config.yaml are replaced.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        save_weights(self.denoiser, root / WEIGHTS, self.text)
        save_config(self.config, root / CONFIG)

    def _sampler(
        self,
        sampler: str | SamplerConfig | None,
        steps: int | None,
        guidance: float | None,
        guidance_by: str | None,
        interval: GuidanceInterval | tuple[float, float | None] | None,
    ) -> SamplerConfig:
        base = sampler if isinstance(sampler, SamplerConfig) else self.config.sampler
        if isinstance(interval, tuple):
            interval = GuidanceInterval(*interval)
        changes = {
            "type": sampler if isinstance(sampler, str) else None,
            "steps": steps,
            "guidance": guidance,
            "guidance_by": guidance_by,
            "guidance_interval": interval,
        }
        changed = to_mapping(base) | {key: value for key, value in changes.items() if value is not None}
        values = to_mapping(self.config) | {"sampler": parse(SamplerConfig, changed, "sampling", "sampler")}
        return config_from_mapping(values, "sampling").sampler  # also checks that it fits the network

    def _set_precision(self, dtype: torch.dtype) -> None:
        net = self.denoiser.net
        for parameter in net.parameters():
            if parameter.ndim > 1:  # norms, biases and positions stay in float32
                parameter.data = parameter.data.to(dtype)
        net.__dict__.pop("forward", None)
        if dtype != torch.float32:
            net.forward = torch.autocast(self.device.type, dtype=dtype)(net.forward)  # type: ignore[method-assign]


def load_denoiser(config: Config, path: Path) -> Objective:
    """Load averaged weights into the network of a configuration.

    Args:
        config: names the architecture, the objective and the text features.
        path: the .safetensors file.

    Returns:
        The network on the CPU, in evaluation mode.

    Raises:
        CheckpointError: if the file is missing, damaged or doesn't fit.
        ConfigError: if the weights were trained on other text features than `config` names.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; has the run finished?")
    check_features(path, config.text)
    net = DiT(config.model, seed=None)
    tensors = read_tensors(path)
    try:
        sigma_data = float(tensors.pop(SIGMA_DATA))
        net.load_state_dict(tensors)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be loaded: {' '.join(str(error).split())[:400]}") from None
    return build_objective(config.diffusion, net, sigma_data).eval()


def save_weights(denoiser: Objective, path: Path, text: TextRecord | None) -> None:
    """Write a network's weights and sigma_data, with a record of its text features.

    Args:
        denoiser: the network, unsharded.
        path: the .safetensors file, which is replaced atomically.
        text: the record; None if unknown.
    """
    with atomic_path(path) as temporary:
        exact = torch.tensor(denoiser.sigma_data, dtype=torch.float64)
        weights: dict[str, Tensor] = {name: t.contiguous() for name, t in denoiser.net.state_dict().items()}
        tensors = weights | {SIGMA_DATA: exact}
        write_tensors(temporary, tensors, None if text is None else text.facts())


def _config_beside(weights: Path, source: Path) -> Config:
    path = weights.parent / CONFIG
    if source.is_file() and not path.is_file():
        raise ConfigError(
            f"{source} has no {CONFIG} beside it; give the run's folder, or the settings as 'config'. A released "
            "checkpoint is converted by: microdit import CHECKPOINT --out FOLDER"
        )
    if not path.is_file() and (weights.parent / "model.yaml").is_file():
        raise ConfigError(f"{path}: no such file; the folder was imported by an older version: import it again")
    return load_config(path)


def _checked_device(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is '{device}': {' '.join(str(error).split())[:200]}") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is '{device}', but no CUDA device is visible; use 'cpu'")
    return place
