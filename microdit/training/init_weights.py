"""Check and load initial weights from another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from microdit.common.errors import CheckpointError, ConfigError, listed
from microdit.common.files.tensors import read_tensors
from microdit.encoders.text_record import check_features
from microdit.model import DiT
from microdit.training.config import Recipe
from microdit.training.run_files import INIT_KEY, weights_file

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name

SIGMA_DATA = "sigma_data"  # a scalar stored among a run's weights
MAX_LISTED = 4  # tensors or parameters in an error message

# (tensor, dimension, setting): shapes that show which setting differs.
SHAPE_HINTS = (
    ("x_embedder.proj.weight", 0, "'model.width'"),
    ("x_embedder.proj.weight", 1, "'model.in_channels'"),
    ("x_embedder.proj.weight", 2, "'model.patch_size'"),
    ("y_embedder.fc1.weight", 1, "'model.caption_channels'"),
)
DEPTH_HINTS = (
    ("blocks.", "'model.depth'"),
    ("mixer.blocks.", "the depth of the patch-mixer ('model.mixer.depth', 'model.masking.method')"),
)


def initial_sigma_data(path: str) -> float:
    """Return the sigma_data that the weights were trained with.

    With another value, the weights would denoise differently.

    Raises:
        CheckpointError: if the file is damaged.
        ConfigError: if there is no file, or it does not record the value.
    """
    file = weights_file(path)
    try:
        with safe_open(file, "pt") as tensors:
            if SIGMA_DATA in tensors.keys():  # noqa: SIM118 - a reader, not a mapping
                return float(tensors.get_tensor(SIGMA_DATA))
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None
    raise ConfigError(f"{file} does not record its sigma_data; set 'diffusion.sigma_data' (released models: 0.9)")


def check_initial(config: Recipe) -> None:
    """Check the initial weights against the configuration, reading only headers.

    Raises:
        ConfigError: if the weights are missing, were trained on other caption features, or would be overwritten.
        CheckpointError: if the file is damaged, or names or shapes of tensors differ.
    """
    init = config.training.init
    if init is None:
        return
    file = weights_file(init)
    if file.parent.resolve() == Path(config.output_dir).expanduser().resolve():
        raise ConfigError(f"'{INIT_KEY}' is '{init}', this run's own output folder; give it another 'output_dir'")
    if config.diffusion.sigma_data is None:
        initial_sigma_data(init)
    check_features(file, config.text)
    with torch.device("meta"):
        own = DiT(config.model, seed=None).state_dict()
    try:
        with safe_open(file, "pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None
    shapes.pop(SIGMA_DATA, None)
    _check_shapes(shapes, {name: tuple(tensor.shape) for name, tensor in own.items()}, file)


def load_initial(net: DiT, path: str) -> None:
    """Load initial weights into a network.

    Position embeddings are not weights: the network keeps its own, so the resolution may differ.

    Args:
        net: the network to load into.
        path: `training.init`.

    Raises:
        ConfigError: if there is no file.
        CheckpointError: if the weights do not fit; `check_initial` reports why beforehand.
    """
    file = weights_file(path)
    weights = read_tensors(file)
    weights.pop(SIGMA_DATA, None)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file}: can't be read as weights: {' '.join(str(error).split())[:200]}")


def _check_shapes(weights: Shapes, own: Shapes, file: Path) -> None:
    problems = [
        f"{name} is {weights[name]} there and {shape} here"
        for name, shape in own.items()
        if name in weights and weights[name] != shape
    ]
    problems += [f"{name} is only here" for name in own if name not in weights]
    problems += [f"{name} is only there" for name in weights if name not in own]
    if not problems:
        return
    raise CheckpointError(
        f"'{INIT_KEY}': {file} doesn't fit this network: {_settings(weights, own)}({listed(problems, MAX_LISTED)})"
    )


def _settings(weights: Shapes, own: Shapes) -> str:
    """Return the settings that differ, as far as shapes show, with a space at the end."""
    found = []
    for name, dimension, key in SHAPE_HINTS:
        if name in weights and len(weights[name]) == len(own[name]):
            there, here = weights[name][dimension], own[name][dimension]
            found += [f"{key} is {there} there and {here} here"] if there != here else []
    for prefix, key in DEPTH_HINTS:
        there, here = (_depth(tensors, prefix) for tensors in (weights, own))
        found += [f"{key} is {there} there and {here} here"] if there != here else []
    return "; ".join(found or ["another 'model.masking.method', 'model.ffn', 'model.experts' or width schedule"]) + " "


def _depth(shapes: Shapes, prefix: str) -> int:
    numbers = {name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)}
    return len(numbers)
