"""Test the encoders: real formats, shipped weights, round trips, and one clear error if something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from microdit.assets.build.bpe import learn_merges, vocabulary_size
from microdit.assets.build.evaluate import embed_scenes, held_out, psnr, retrieval
from microdit.assets.build.hard_negatives import swap
from microdit.common.errors import ConfigError
from microdit.encoders.autoencoder import build_autoencoder
from microdit.encoders.config import ROOT, TEXT_CLIP, VAE, AutoencoderConfig, TextConfig
from microdit.encoders.open_clip_checkpoint import open_clip_folder
from microdit.encoders.text import build_text_encoder
from microdit.evaluation.clip import ScoringClip


def images_of(items: list) -> torch.Tensor:
    return torch.from_numpy(np.stack([item.image for item in items]))


def test_all_shipped_files_stay_small():
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 12 * 2**20


def test_round_trip_of_held_out_scenes():
    assert psnr(held_out(12)) > 28
    assert psnr(held_out(6, 128), 0.1) > 27


def test_latents_have_unit_scale_at_any_size():
    autoencoder = build_autoencoder(AutoencoderConfig())
    z = autoencoder.encode(images_of(held_out(16)))
    assert z.shape == (16, 4, 16, 16)
    assert z.std().item() == pytest.approx(1, abs=0.25)
    assert autoencoder.encode(images_of(held_out(2, 128))).shape == (2, 4, 32, 32)
    assert torch.equal(z, autoencoder.encode(images_of(held_out(16))))


def test_pixels_are_lossless():
    pixels = build_autoencoder(AutoencoderConfig("pixels"))
    x = images_of(held_out(2))
    assert torch.equal(pixels.decode(pixels.encode(x)), x)


def test_scale_and_shift_of_another_autoencoder_are_applied(tmp_path: Path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    plain = {
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": 16,
        "mid_block_add_attention": False,
    }
    plain |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(**plain, scaling_factor=0.5, shift_factor=0.25)
    model.save_pretrained(tmp_path / "vae")
    ours = build_autoencoder(AutoencoderConfig(str(tmp_path / "vae")))
    assert (ours.channels, ours.downsampling) == (16, 2)
    x = images_of(held_out(2))
    with torch.no_grad():
        mean = model.encode(x.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
        back = model.decode(mean).sample
    torch.testing.assert_close(ours.encode(x), (mean - 0.25) * 0.5, atol=1e-5, rtol=1e-5)
    expected = ((back.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    assert (ours.decode(ours.encode(x)).float() - expected).abs().max() <= 1


def test_the_last_layer_equals_the_input_of_open_clips_pooling():
    text = build_text_encoder(TextConfig())
    clip = open_clip_folder(TEXT_CLIP, "text.path")
    captions = ["a red car on a green background", "two cats"]
    features, tokens = text.encode(captions), clip.tokenize(captions)
    assert features.shape == (2, text.length, text.width)
    with torch.no_grad():
        pooled = features[torch.arange(2), tokens.argmax(-1)] @ clip.model.text_projection
        torch.testing.assert_close(pooled, clip.model.encode_text(tokens), atol=1e-5, rtol=1e-4)


def test_the_penultimate_layer_skips_the_last_block():
    last, before = (build_text_encoder(TextConfig(layer=layer)) for layer in ("last", "penultimate"))
    clip = open_clip_folder(TEXT_CLIP, "text.path")
    seen = []
    clip.model.transformer.resblocks[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        clip.model.encode_text(clip.tokenize(["a dog"]))
        expected = clip.model.ln_final(seen[0])
    torch.testing.assert_close(before.encode(["a dog"]), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(before.encode(["a dog"]), last.encode(["a dog"]))
    assert before.fingerprint != last.fingerprint


@pytest.mark.parametrize("caption", ["", "ünïcödé 🚗 漢字", "a " * 200, "\n\t", "A RED CAR"])
def test_any_text_is_encoded(caption: str):
    features = build_text_encoder(TextConfig()).encode([caption])
    assert features.isfinite().all()


@pytest.mark.parametrize("name", ["text_clip", "score_clip"])
def test_captions_retrieve_their_images(name: str):
    items = held_out(64)
    clip = open_clip_folder(ROOT / name, name)
    captions = [item.caption for item in items]
    to_text, to_image = retrieval(embed_scenes(clip, items), clip.embed_texts(captions), captions)
    assert min(to_text, to_image) > 0.5  # chance is 1/64


def test_the_scoring_clip_maps_images_of_any_size_to_unit_vectors():
    clip = ScoringClip()
    embedded = clip.embed_images(images_of(held_out(3, 128)))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    assert clip.fingerprint == ScoringClip.digest()


def test_swaps_change_one_fact():
    rng = np.random.default_rng(0)
    caption = "a red car left of two birds on a green background"
    assert swap(caption, "relation", rng) == "a red car right of two birds on a green background"
    assert swap("a cat", "relation", rng) is None
    for attribute in ("class", "color", "count", "background"):
        changed = swap(caption, attribute, rng)
        assert changed is not None
        assert changed != caption


def test_merges_are_a_function_of_the_captions():
    captions = ["a red car", "a red bird", "the red red car"]
    merges = learn_merges(captions, 50)
    assert merges == learn_merges(captions, 50)
    assert ("re", "d</w>") in merges or ("r", "ed</w>") in merges
    assert vocabulary_size(merges) == 514 + len(merges)


def broken(folder: Path, kind: str) -> str:
    builders = {
        "vae": lambda: build_autoencoder(AutoencoderConfig(str(folder))),
        "clip": lambda: build_text_encoder(TextConfig(str(folder))),
    }
    with pytest.raises(ConfigError) as caught:
        builders[kind]()
    return str(caught.value)


def test_errors_name_missing_and_unsuitable_folders(tmp_path: Path):
    assert "no such folder" in broken(tmp_path / "gone", "vae")
    assert "no such folder" in broken(tmp_path / "gone", "clip")
    (tmp_path / "empty").mkdir()
    assert "config.json" in broken(tmp_path / "empty", "vae")
    assert "open_clip_config.json" in broken(tmp_path / "empty", "clip")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    (other / "diffusion_pytorch_model.safetensors").write_bytes(
        (VAE / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    assert "UNet2DModel" in broken(other, "vae")
    (other / "open_clip_config.json").write_text("{}")
    (other / "open_clip_model.safetensors").write_bytes(b"")
    assert "not an open_clip configuration" in broken(other, "clip")
