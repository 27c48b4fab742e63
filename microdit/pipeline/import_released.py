"""Convert a checkpoint of the paper's released model to a folder for `Pipeline`.

The folder also records the text encoder and the autoencoder that the model was trained with.
"""

from __future__ import annotations

from pathlib import Path

from microdit.common.errors import ConfigError
from microdit.config.schema import Config, save_config
from microdit.data.config import DataConfig
from microdit.diffusion import DiffusionConfig, SamplerConfig
from microdit.encoders.config import AutoencoderConfig, TextConfig
from microdit.encoders.text import build_text_encoder
from microdit.encoders.text_record import RELEASED, published_name, text_record
from microdit.evaluation.config import EvalConfig
from microdit.model import DiTConfig, import_released
from microdit.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig

SIGMA_DATA = 0.9  # of all released models
PIXELS_PER_LATENT = 8  # along a side, of all their autoencoders
STEPS, GUIDANCE = 30, 5.0  # of the released generate()
# By number of latent channels, the autoencoders of the published weights.
AUTOENCODERS = {4: "stabilityai/stable-diffusion-xl-base-1.0/vae", 16: "ostris/vae-kl-f8-d16"}


def import_model(
    checkpoint: Path | str,
    out: Path | str,
    preset_name: str,
    config: Path | None = None,
    text: TextConfig = RELEASED,
    autoencoder: str | None = None,
    resolution: int | None = None,
) -> str:
    """Convert a released checkpoint to weights, model.yaml and config.yaml.

    Args:
        checkpoint: a .safetensors or .pt file.
        out: the new folder.
        preset_name: name of the architecture, as for `import_released`.
        config: file of the architecture instead, as for `import_released`.
        text: the encoder and layer that the model was trained on, by a published name or a local copy.
        autoencoder: that of its latents; None: the released one with as many channels.
        resolution: side of its images in pixels; None: as the checkpoint's positions imply, else 256.

    Returns:
        One line that describes the model and names the command that samples it.

    Raises:
        ConfigError: if the encoder, the autoencoder or the resolution doesn't fit this architecture.
        CheckpointError: if the checkpoint doesn't fit it.
    """
    if resolution is not None and (resolution < PIXELS_PER_LATENT or resolution % PIXELS_PER_LATENT):
        raise ConfigError(f"--resolution is {resolution}; it must be a multiple of {PIXELS_PER_LATENT}")
    text = TextConfig(
        text.path if published_name(text.path) else str(Path(text.path).expanduser().absolute()), text.layer
    )
    encoder = None if text == RELEASED else build_text_encoder(text)
    record = text_record(text, "" if encoder is None else encoder.fingerprint)
    folder = Path(out)

    def write_config(scratch: Path, model: DiTConfig) -> None:
        if encoder is not None and encoder.width != model.caption_channels:
            raise ConfigError(
                f"--text {text.path} has features of width {encoder.width}, but the model was trained on "
                f"{model.caption_channels} ('model.caption_channels')"
            )
        save_config(_sampling_config(folder, model, text, autoencoder), scratch / "config.yaml")

    done = import_released(
        checkpoint,
        folder,
        preset_name,
        config,
        facts=record.facts(),
        sigma_data=SIGMA_DATA,
        beside=write_config,
        input_size=None if resolution is None else resolution // PIXELS_PER_LATENT,
    )
    return f"{done}; text encoder {text.path}, layer '{text.layer}'; draw with it: microdit sample {out} \"a caption\""


def _sampling_config(out: Path, model: DiTConfig, text: TextConfig, autoencoder: str | None) -> Config:
    """Return settings to sample and evaluate with; training also needs 'data.path'."""
    if autoencoder is None and model.in_channels not in AUTOENCODERS:
        raise ConfigError(
            f"'model.in_channels' is {model.in_channels}, but the released autoencoders have "
            f"{' or '.join(map(str, AUTOENCODERS))} channels; give --autoencoder"
        )
    return Config(
        name=out.name,
        output_dir=f"runs/{out.name}",
        data=DataConfig(name="folder", resolution=PIXELS_PER_LATENT * model.input_size),
        autoencoder=AutoencoderConfig(autoencoder or AUTOENCODERS[model.in_channels]),
        text=text,
        model=model,
        diffusion=DiffusionConfig(sigma_data=SIGMA_DATA),
        optimizer=OptimizerConfig(lr=8e-5, weight_decay=0.1),
        schedule=ScheduleConfig("constant"),
        training=TrainingConfig(steps=5000, batch_size=2048, init=str(out.absolute())),
        sampler=SamplerConfig(steps=STEPS, guidance=GUIDANCE),
        evaluation=EvalConfig(samples=256, reference_count=1024),
    )
