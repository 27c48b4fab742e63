"""Import the paper's released weights.

Entries are renamed to our names and loaded without unpickling. A checkpoint that does not fit is rejected with a list
of the keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from microdit.common.errors import CheckpointError, ConfigError
from microdit.common.files.atomic import atomic_path, sweep
from microdit.common.files.tensors import read_tensors, write_tensors
from microdit.common.files.text import read_json_object
from microdit.common.files.torch_archive import read_torch_file
from microdit.common.parsing import parse, read_yaml, to_mapping
from microdit.model.config import DiTConfig, ExpertsConfig, MaskingConfig, MixerConfig
from microdit.model.dit import DiT
from microdit.model.presets import preset
from microdit.model.width_schedules import WidthConfig

# (beginning of a released name, of ours); all other names are the same.
NAMES = (
    ("y_embedder.y_proj.", "y_embedder."),
    ("y_emb_preprocess.", "caption_block."),
    ("pooled_y_emb_process.", "pooled_embedder."),
    ("patch_mixer.", "mixer.blocks."),
    ("patch_mixer_map_xin.", "mixer.map_in."),
    ("patch_mixer_map_y.", "mixer.map_caption."),
    ("patch_mixer_map_xout.", "mixer.map_out."),
)
TO_OURS = dict(NAMES)
TO_RELEASED = {ours: released for released, ours in NAMES}
BUFFERS = ("pos_embed", "mask_token")  # fixed: recomputed, checked, not loaded
LISTED = 6  # names of one kind that a message lists


def load_released(source: Path | str | Mapping[str, Tensor], config: DiTConfig) -> DiT:
    """Return a `DiT` with released weights.

    Args:
        source: a .safetensors or .pt/.pth/.bin file, or a state dict. The network's entries may be nested under `dit.`;
            those of an autoencoder and a text encoder beside them are ignored. Pickles are parsed, never executed.
        config: the architecture, from `preset` or `released_config`.

    Raises:
        CheckpointError: if the file cannot be read, or entries are missing, unexpected or misshapen; lists them.
    """
    where = "state dict" if isinstance(source, Mapping) else str(source)
    return _load(_unnest(source if isinstance(source, Mapping) else _read(Path(source)), where), config, where)


def _load(weights: dict[str, Tensor], config: DiTConfig, where: str) -> DiT:
    net = DiT(config, seed=None)
    _check_buffers(weights, net, where)
    _compare(weights, {_rename(name, TO_RELEASED): value for name, value in net.state_dict().items()}, where)
    net.load_state_dict({_rename(name, TO_OURS): value for name, value in weights.items()})
    return net


def released_config(values: Mapping[str, Any], masking: MaskingConfig | None = None) -> DiTConfig:
    """Return our settings for the released model's constructor arguments.

    Args:
        values: argument names and values. Only `use_patch_mixer` may be missing.
        masking: used in training; None: deferred masking of 75%, or naive masking if the model has no patch-mixer.

    Raises:
        KeyError: if another argument is missing.
        ConfigError: if a value is impossible.
    """
    attention, feed_forward = values["qkv_multipliers"], values["ffn_multipliers"]
    use_mixer = values.get("use_patch_mixer", True)
    return DiTConfig(
        in_channels=values["in_channels"],
        input_size=values["input_size"],
        patch_size=values["patch_size"],
        width=values["dim"],
        depth=values["depth"],
        head_dim=values["head_dim"],
        caption_channels=values["caption_channels"],
        pos_interp_scale=values["pos_interp_scale"],
        norm_eps=values["norm_eps"],
        bias=values["use_bias"],
        attn_width=WidthConfig("layerwise", attention[0], attention[-1], 2 * values["head_dim"]),
        ffn_width=WidthConfig("layerwise", feed_forward[0], feed_forward[-1], values["multiple_of"]),
        experts=ExpertsConfig(values["num_experts"], values["expert_capacity"], values["experts_every_n"]),
        mixer=MixerConfig(
            depth=values["patch_mixer_depth"],
            width=values["patch_mixer_dim"],
            attn_ratio=values["patch_mixer_qkv_ratio"],
            ffn_ratio=values["patch_mixer_mlp_ratio"],
        ),
        masking=masking or MaskingConfig("deferred" if use_mixer else "naive", 0.75),
    )


def import_released(
    checkpoint: Path | str,
    out: Path | str,
    preset_name: str,
    config: Path | None = None,
    facts: Mapping[str, str] | None = None,
    sigma_data: float | None = None,
    beside: Callable[[Path, DiTConfig], None] | None = None,
    input_size: int | None = None,
) -> str:
    """Convert a released checkpoint to `out`/model.safetensors and `out`/model.yaml.

    Args:
        checkpoint: a file that `load_released` accepts.
        out: the new folder.
        preset_name: the architecture. Its latent size and position scale are replaced by those of the checkpoint.
        config: a YAML or JSON file with our model keys or the released model's arguments; replaces the preset.
        facts: metadata stored in the file of weights.
        sigma_data: standard deviation of the latents, stored with the weights.
        beside: writes further files into the new folder; called with the folder and the architecture.
        input_size: side of the latents, for checkpoints that don't contain their positions.

    Returns:
        A line with the number of parameters and the paths of both files.

    Raises:
        ConfigError: if the preset is unknown, or `input_size` contradicts the checkpoint or is given with `config`.
        CheckpointError: if the checkpoint can't be read or doesn't fit the architecture.
    """
    where = str(checkpoint)
    weights = _unnest(_read(Path(checkpoint)), where)
    if config is None:
        settings = _at_size(preset(preset_name), weights.get("pos_embed"), input_size, where)
    elif input_size is None:
        settings = _read_config(config)
    else:
        raise ConfigError("--resolution is for presets; set 'input_size' and 'pos_interp_scale' in --config")
    net = _load(weights, settings, where)
    sweep(Path(out).parent)
    with atomic_path(out) as folder:
        folder.mkdir()
        known = {} if sigma_data is None else {"sigma_data": torch.tensor(sigma_data, dtype=torch.float64)}
        write_tensors(folder / "model.safetensors", net.state_dict() | known, facts)
        (folder / "model.yaml").write_text(yaml.safe_dump(to_mapping(settings), sort_keys=False))
        if beside is not None:
            beside(folder, settings)
    count = sum(p.numel() for p in net.parameters())
    return f"{count:,} parameters in {Path(out) / 'model.safetensors'}, settings in {Path(out) / 'model.yaml'}"


def _at_size(config: DiTConfig, positions: Tensor | None, input_size: int | None, where: str) -> DiTConfig:
    """Return a preset at the latent size of the stored positions, or at `input_size`.

    Args:
        config: the preset.
        positions: the checkpoint's position table (1, T, D), if it has one.
        input_size: side of the latents; None: that of the positions or the preset.
        where: the checkpoint, for messages.
    """
    scale = config.pos_interp_scale * (input_size or config.input_size) / config.input_size
    if positions is not None and positions.ndim == 3:
        stored = math.isqrt(positions.shape[1]) * config.patch_size
        if input_size not in (None, stored):
            raise ConfigError(f"{where}: holds positions for latents of {stored} x {stored}, not {input_size}")
        input_size = stored
        first_sine = float(positions[0, 1, 0]) if positions.shape[1] > 1 else 0.0  # sin(1 / scale)
        if 0 < first_sine < 1:
            scale = round(1 / math.asin(first_sine), 2)  # rounded: weights may be stored in half precision
    return replace(config, input_size=input_size or config.input_size, pos_interp_scale=scale)


def load_imported_folder(folder: Path | str) -> DiT:
    """Return the network in a folder that `import_released` wrote.

    Raises:
        ConfigError: if the folder's model.yaml is missing or invalid.
        CheckpointError: if its weights are missing, unreadable or don't fit the settings.
    """
    folder = Path(folder)
    net = DiT(_read_config(folder / "model.yaml"), seed=None)
    weights = dict(_read(folder / "model.safetensors"))
    weights.pop("sigma_data", None)
    _compare(weights, net.state_dict(), str(folder / "model.safetensors"))
    net.load_state_dict(weights)
    return net


def _read_config(path: Path) -> DiTConfig:
    values = read_json_object(path, ConfigError) if path.suffix == ".json" else read_yaml(path)
    if "qkv_multipliers" not in values:
        return parse(DiTConfig, values, str(path))
    try:
        return released_config(values)
    except KeyError as error:
        raise ConfigError(f"{path}: the released model's argument {error} is missing") from None


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return read_tensors(path)
    loaded = read_torch_file(path)
    for wrapper in ("state_dict", "state", "model"):  # trainers wrap the weights in these
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: holds no plain state dict (names to tensors)")
    return loaded


def _unnest(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    nested = {name.removeprefix("dit."): value for name, value in tensors.items() if name.startswith("dit.")}
    if nested:
        return nested
    if not any(name.startswith("x_embedder.") for name in tensors):
        some = ", ".join(list(tensors)[:LISTED]) or "nothing"
        raise CheckpointError(f"{where}: neither a plain state dict of the model nor one under 'dit.'; it has {some}")
    return dict(tensors)


def _rename(name: str, beginnings: Mapping[str, str]) -> str:
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _check_buffers(weights: dict[str, Tensor], net: DiT, where: str) -> None:
    stored = {name: weights.pop(name) for name in BUFFERS if name in weights}
    found, expected = stored.get("pos_embed"), net.pos_embed
    if found is None:
        return
    if found.shape != expected.shape:
        raise CheckpointError(
            f"{where}: 'pos_embed' is {tuple(found.shape)}, these settings give {tuple(expected.shape)}: another "
            "'model.input_size', 'model.patch_size' or 'model.width'"
        )
    rounding = 1e-2  # the weights may have been stored in half precision
    if not found.is_meta and not torch.allclose(found.float(), expected, atol=rounding):
        raise CheckpointError(f"{where}: 'pos_embed' holds other positions; set 'model.pos_interp_scale' as it was")


def _compare(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise CheckpointError(f"{where}: doesn't fit these settings; {'; '.join(problems)}")
