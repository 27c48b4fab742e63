"""Test autoencoders in diffusers' format: normalization, precision, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pickle_trap import PickleTrap
from real_formats import FLUX, SDXL, autoencoder
from safetensors.torch import load_file, save_file

from microdit.common.errors import ConfigError
from microdit.encoders.autoencoder import WEIGHTS, build_autoencoder
from microdit.encoders.config import AutoencoderConfig

MEANS = {"latent_channels": 4, "latents_mean": (-1.0, 0.5, 0.0, 2.0), "latents_std": (8.0, 1.0, 0.5, 2.0)}


def make(folder: Path, **settings: Any) -> Any:
    model = autoencoder(levels=2, **settings)
    model.save_pretrained(folder)
    return model


def images(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [SDXL, FLUX, MEANS], ids=["sdxl", "flux", "means"])
def test_latents_equal_those_of_diffusers_pipelines(tmp_path: Path, kind: dict[str, Any]):
    model, ours = make(tmp_path, **kind), build_autoencoder(AutoencoderConfig(str(tmp_path)))
    config = model.config
    with torch.no_grad():
        z = model.encode(images().permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
        if config.latents_mean is not None:  # StableDiffusionXLImg2ImgPipeline
            mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
            expected = (z - mean) * config.scaling_factor / std
            back = expected * std / config.scaling_factor + mean
        else:  # StableDiffusion3Img2ImgPipeline, FluxImg2ImgPipeline
            shift = config.shift_factor or 0
            expected = (z - shift) * config.scaling_factor
            back = expected / config.scaling_factor + shift
        image = model.decode(back).sample
    latents = ours.encode(images())
    assert latents.shape == (2, kind["latent_channels"], 8, 8)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    wanted = ((image.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    assert (ours.decode(latents).float() - wanted).abs().max() <= 1


def test_without_a_scale_diffusers_default_is_used(tmp_path: Path):
    model = make(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["scaling_factor"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert build_autoencoder(AutoencoderConfig(str(tmp_path))).describe()["scaling_factor"] == 0.18215
    assert model.config.scaling_factor == 0.18215


def test_half_precision_unless_the_configuration_forbids_it(tmp_path: Path):
    make(tmp_path / "sdxl", **SDXL)
    make(tmp_path / "flux", **FLUX)
    for name, kept in (("sdxl", "fp32"), ("flux", "fp16")):
        full, half = (
            build_autoencoder(AutoencoderConfig(str(tmp_path / name), precision)) for precision in ("fp32", "fp16")
        )
        assert half.describe()["precision"] == kept
        assert (half.fingerprint == full.fingerprint) == (kept == "fp32")


def test_a_variant_in_half_precision_is_found(tmp_path: Path):
    model = make(tmp_path / "whole", **FLUX)
    model.save_pretrained(tmp_path / "half", variant="fp16")
    assert not (tmp_path / "half" / WEIGHTS).exists()
    whole, half = (build_autoencoder(AutoencoderConfig(str(tmp_path / name))) for name in ("whole", "half"))
    assert torch.equal(whole.encode(images()), half.encode(images()))


def rejection(folder: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        build_autoencoder(AutoencoderConfig(str(folder)))
    return str(caught.value)


def test_weights_that_do_not_fit_are_rejected(tmp_path: Path):
    make(tmp_path, **SDXL)
    whole = load_file(tmp_path / WEIGHTS)
    settings = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(settings.replace('"latent_channels": 4', '"latent_channels": 16'))
    assert "latent" in rejection(tmp_path) or "shape" in rejection(tmp_path)
    (tmp_path / "config.json").write_text(settings)
    name = next(name for name in whole if name.startswith("decoder"))
    save_file({key: value for key, value in whole.items() if key != name}, tmp_path / WEIGHTS)
    assert name in rejection(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    assert str(tmp_path) in rejection(tmp_path)


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "vae", **SDXL)
    (tmp_path / "vae" / WEIGHTS).unlink()
    torch.save({"decoder": PickleTrap(tmp_path / "trace")}, tmp_path / "vae" / "diffusion_pytorch_model.bin")
    assert "is a pickle" in rejection("vae")
    assert not (tmp_path / "trace").exists()


def test_errors_name_the_autoencoder_in_a_pipelines_folder(tmp_path: Path):
    make(tmp_path / "vae", **SDXL)
    assert str(tmp_path / "vae") in rejection(tmp_path)


def test_errors_without_a_connection_list_the_files_to_provide(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    requested = []

    def unreachable(repository: str, **options: Any) -> str:
        requested.append((repository, options["allow_patterns"]))
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    message = rejection("stabilityai/stable-diffusion-xl-base-1.0/vae")
    assert requested[0][0] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert f"vae/{WEIGHTS[:23]}*.safetensors" in requested[0][1]
    for part in ("no connection", "config.json", WEIGHTS, "(from vae)", "autoencoder.path"):
        assert part in message


def test_a_repository_is_opened_as_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    make(tmp_path / "vae", **FLUX)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    named, local = (build_autoencoder(AutoencoderConfig(path)) for path in ("owner/name/vae", str(tmp_path / "vae")))
    assert named.fingerprint == local.fingerprint
