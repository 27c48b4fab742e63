"""Locate, identify and check initial weights from another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from microdit.common.errors import CheckpointError, ConfigError
from microdit.common.files.digests import content_digest
from microdit.common.files.tensors import read_tensors
from microdit.encoders.text_record import check_features
from microdit.model import DiT
from microdit.training.config import Recipe

Shapes = Mapping[str, tuple[int, ...]]  # of tensors, by name

KEY = "training.init"
WEIGHTS = "model.safetensors"  # what a run and `microdit import` leave in their folder
SIGMA_DATA = "sigma_data"  # a run's weights have it among them
LISTED = 4  # tensors that a message names

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


def weights_file(path: str) -> Path:
    """Return the file that `training.init` means.

    It is the path itself, or the weights in a run's or an imported model's folder.

    Raises ConfigError if there is none.
    """
    given = Path(path).expanduser()
    found = given / WEIGHTS if given.is_dir() else given
    if found.is_file() and found.suffix == ".safetensors":
        return found
    if found.is_file():
        raise ConfigError(f"'{KEY}' is '{path}', which is no .safetensors file; microdit import makes one of it")
    if (given / "config.yaml").is_file():
        raise ConfigError(f"'{KEY}' is '{path}', a run that has no {WEIGHTS} yet; has it finished?")
    what = f"a folder without {WEIGHTS}" if given.is_dir() else "not there"
    raise ConfigError(f"'{KEY}' is '{path}', which is {what}; give a run's folder, an imported one or a .safetensors")


def weights_digest(path: str) -> str:
    """Return 16 hex digits of the content of `weights_file`.

    They identify initial weights independently of the path.
    """
    return content_digest(weights_file(path))[:16]


def initial_sigma_data(path: str) -> float:
    """Return the sigma_data that the weights were trained with.

    With another value, the weights would denoise differently.

    Raises CheckpointError if the file is damaged, and ConfigError if it does not record it.
    """
    file = weights_file(path)
    try:
        with safe_open(file, "pt") as tensors:
            if SIGMA_DATA in tensors.keys():  # noqa: SIM118 - a reader, not a mapping
                return float(tensors.get_tensor(SIGMA_DATA))
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from None
    raise ConfigError(
        f"{file} doesn't say which sigma_data it was trained with; give 'diffusion.sigma_data' (released models: 0.9)"
    )


def check_initial(config: Recipe) -> None:
    """Raise the errors of loading initial weights, before any work.

    Raises ConfigError also if the run would overwrite its initial weights.
    """
    init = config.training.init
    if init is None:
        return
    file = weights_file(init)
    if file.parent.resolve() == Path(config.output_dir).expanduser().resolve():
        raise ConfigError(f"'{KEY}' is '{init}', this run's own output folder; give it another 'output_dir'")
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
    """Load the weights that `training.init` names into `net`.

    Position embeddings are not weights: those of `net` stay, so the resolution may differ. Raises CheckpointError if
    the weights do not fit; `check_initial` reports why beforehand.
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
    more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    raise CheckpointError(
        f"'{KEY}': {file} doesn't fit this network: {_settings(weights, own)}({', '.join(problems[:LISTED])}{more})"
    )


def _settings(weights: Shapes, own: Shapes) -> str:
    """Return the settings that would make the network fit, as far as shapes show.

    The text ends with a space.
    """
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
