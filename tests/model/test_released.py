"""Test released checkpoints in every known wrapping; damaged ones are rejected with a list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from microdit.common.errors import CheckpointError, ConfigError
from microdit.model import (
    checkpoint_import,
    import_released,
    load_imported_folder,
    load_released,
    preset,
    released_config,
)
from microdit.model.layers.embeddings import sincos_positions

REFERENCE = Path(__file__).parent / "reference"
SHAPES = json.loads((REFERENCE / "shapes.json").read_text())
SMALL = REFERENCE / "small.safetensors"
ARGUMENTS = json.loads((REFERENCE / "small.json").read_text())
CONFIG = released_config(ARGUMENTS)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return load_file(SMALL)


@pytest.mark.parametrize(("name", "count"), [("MicroDiT_Tiny_2", 200_692_752), ("MicroDiT_XL_2", 1_165_442_320)])
def test_every_name_and_shape_of_the_released_models_is_mapped(name, count):
    with torch.device("meta"):
        released = {entry: torch.empty(shape) for entry, shape in SHAPES[name].items()}
        net = load_released(released, preset(name))
    assert sum(parameter.numel() for parameter in net.parameters()) == count
    buffers = released["pos_embed"].numel() + released["mask_token"].numel()
    assert sum(tensor.numel() for tensor in released.values()) == count + buffers


def test_a_checkpoint_nested_beside_other_networks_opens(weights, tmp_path):
    nested = {f"dit.{name}": value for name, value in weights.items()}
    nested |= {"vae.encoder.conv_in.weight": torch.ones(3), "text_encoder.transformer.w": torch.ones(2)}
    torch.save({"state_dict": nested}, tmp_path / "composer.pt")
    plain, inner = load_released(SMALL, CONFIG), load_released(tmp_path / "composer.pt", CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), inner.parameters(), strict=True))


def test_import_writes_a_folder_that_opens_again(tmp_path):
    words = import_released(SMALL, tmp_path / "small", "MicroDiT_Tiny_2", REFERENCE / "small.json", sigma_data=0.9)
    net = load_imported_folder(tmp_path / "small")
    count, folder = sum(p.numel() for p in net.parameters()), tmp_path / "small"
    assert words == f"{count:,} parameters in {folder / 'model.safetensors'}, settings in {folder / 'model.yaml'}"
    assert net.config == CONFIG
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        assert float(tensors.get_tensor("sigma_data")) == 0.9
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), load_released(SMALL, CONFIG).parameters(), strict=True)
    )


def test_a_model_released_without_its_mixer_has_none():
    without = released_config(ARGUMENTS | {"use_patch_mixer": False})
    absent = released_config({key: value for key, value in ARGUMENTS.items() if key != "use_patch_mixer"})
    assert without.masking.method == "naive"
    assert absent == CONFIG  # the released constructor's default is to have one


def test_half_precision_weights_open(weights):
    net = load_released({name: value.bfloat16() for name, value in weights.items()}, CONFIG)
    assert all(parameter.dtype == torch.float32 for parameter in net.parameters())


def test_missing_unexpected_and_misshapen_entries_are_listed_together(weights):
    del weights["blocks.0.attn.qkv.weight"]
    weights["blocks.9.extra"] = torch.ones(1)
    weights["final_layer.linear.bias"] = torch.ones(3)
    with pytest.raises(CheckpointError) as caught:
        load_released(weights, CONFIG)
    words = str(caught.value)
    assert "1 missing: blocks.0.attn.qkv.weight" in words
    assert "1 unexpected: blocks.9.extra" in words
    assert "1 misshapen: final_layer.linear.bias (3,) instead of (16,)" in words


def test_names_in_the_message_are_the_files_own(weights):
    del weights["patch_mixer.0.norm1.weight"]
    weights["y_emb_preprocess.norm9.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"patch_mixer\.0\.norm1\.weight.*y_emb_preprocess\.norm9\.weight"):
        load_released(weights, CONFIG)


def test_another_architecture_is_rejected(weights):
    with pytest.raises(CheckpointError, match=r"'pos_embed' is \(1, 16, 64\), these settings give \(1, 256, 512\)"):
        load_released(weights, preset("MicroDiT_Tiny_2"))


def test_other_positions_are_rejected(weights):
    with pytest.raises(CheckpointError, match="pos_interp_scale"):
        load_released(weights, released_config(ARGUMENTS | {"pos_interp_scale": 2.0}))


class _Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_with_code_is_not_run(tmp_path, capsys):
    torch.save({"x_embedder.proj.weight": _Payload()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt: has more than weights"):
        load_released(tmp_path / "evil.pt", CONFIG)
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_damaged_file_is_named(tmp_path, suffix, content):
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"cut{suffix}"):
        load_released(path, CONFIG)


def test_a_truncated_file_is_named(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(SMALL.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="can't be read as weights"):
        load_released(tmp_path / "cut.safetensors", CONFIG)


def test_a_file_without_the_network_is_rejected_with_its_entries(tmp_path):
    save_file({"encoder.weight": torch.ones(2)}, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"under 'dit\.'.*encoder\.weight"):
        load_released(tmp_path / "vae.safetensors", CONFIG)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_released(tmp_path / "none.pt", CONFIG)


def test_a_failed_import_leaves_nothing_behind(tmp_path):
    with pytest.raises(CheckpointError):
        import_released(SMALL, tmp_path / "out", "MicroDiT_Tiny_2")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_argument_is_named(tmp_path):
    incomplete = {key: value for key, value in ARGUMENTS.items() if key != "dim"}
    (tmp_path / "arguments.json").write_text(json.dumps(incomplete))
    with pytest.raises(ConfigError, match=r"arguments\.json.*'dim'"):
        import_released(SMALL, tmp_path / "out", "MicroDiT_Tiny_2", tmp_path / "arguments.json")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_latent_size_of_a_preset_follows_the_checkpoints_positions(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_import, "preset", lambda name: CONFIG)  # 8 x 8 latents, base positions
    positions = sincos_positions(64, 8, 2.0).to(dtype)  # of a network tuned at twice the resolution: 16 x 16 latents
    save_file(load_file(SMALL) | {"pos_embed": positions}, tmp_path / "large.safetensors")
    import_released(tmp_path / "large.safetensors", tmp_path / "large", "small")
    config = load_imported_folder(tmp_path / "large").config
    assert (config.input_size, config.pos_interp_scale) == (16, 2.0)
    with pytest.raises(ConfigError, match="holds positions for latents of 16 x 16, not 8"):
        import_released(tmp_path / "large.safetensors", tmp_path / "other", "small", input_size=8)


def test_the_latent_size_is_given_for_a_checkpoint_without_positions(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_import, "preset", lambda name: CONFIG)
    save_file({k: v for k, v in load_file(SMALL).items() if k != "pos_embed"}, tmp_path / "bare.safetensors")
    import_released(tmp_path / "bare.safetensors", tmp_path / "large", "small", input_size=16)
    config = load_imported_folder(tmp_path / "large").config
    assert (config.input_size, config.pos_interp_scale) == (16, 2.0)
    import_released(tmp_path / "bare.safetensors", tmp_path / "base", "small")
    assert load_imported_folder(tmp_path / "base").config == CONFIG
    with pytest.raises(ConfigError, match="--resolution is for presets"):
        import_released(SMALL, tmp_path / "out", "small", REFERENCE / "small.json", input_size=16)
