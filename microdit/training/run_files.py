"""Locate and identify the files of a run: weights, checkpoints, and the optimizer's state.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from microdit.common.errors import ConfigError
from microdit.common.files.digests import content_digest

INIT_KEY, OPTIMIZER_KEY = "training.init", "training.init_optimizer"
WEIGHTS = "model.safetensors"  # what a run and `microdit import` leave in their folder
TENSORS, REST = "optimizer.safetensors", "optimizer.json"  # the optimizer's state in a checkpoint
INDEX = "index.json"  # of a sharded checkpoint: where the rows of each tensor are


def checkpoint_folder(root: Path, step: int) -> Path:
    """Return the folder of a checkpoint.

    Args:
        root: folder of the run's checkpoints.
        step: finished steps.
    """
    return root / f"step_{step:08d}"


def checkpoints(root: Path) -> list[Path]:
    """Return the checkpoints under `root`, oldest first.

    Incomplete ones are included; they are rejected when they are read.
    """
    found = [path for path in root.glob("step_*") if path.is_dir() and re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def shard_name(process: int, processes: int) -> str:
    """Return the name of the file that one process of a sharded run writes.

    Args:
        process: its number, from 0.
        processes: of the run.
    """
    return f"shard_{process:05d}_of_{processes:05d}.safetensors"


def optimizer_files(folder: Path) -> list[str]:
    """Return the names of a checkpoint's files with the optimizer's state.

    They need not exist.

    Args:
        folder: of the checkpoint.
    """
    if not (folder / INDEX).is_file():
        return [TENSORS, REST]
    return [*sorted(path.name for path in folder.glob("shard_*.safetensors")), INDEX, REST]


def weights_file(path: str) -> Path:
    """Return the file that `training.init` names.

    It is the path itself, or the weights in the folder of a run or an imported model.

    Raises:
        ConfigError: if there is none.
    """
    given = Path(path).expanduser()
    found = given / WEIGHTS if given.is_dir() else given
    if found.is_file() and found.suffix == ".safetensors":
        return found
    if found.is_file():
        raise ConfigError(
            f"'{INIT_KEY}' is '{path}', which is not a .safetensors file; convert it with `microdit import checkpoint`"
        )
    if (given / "config.yaml").is_file():
        raise ConfigError(f"'{INIT_KEY}' is '{path}', a run that has no {WEIGHTS} yet; has it finished?")
    what = f"a folder without {WEIGHTS}" if given.is_dir() else "missing"
    raise ConfigError(
        f"'{INIT_KEY}' is '{path}', which is {what}; give a run's folder, an imported one or a .safetensors"
    )


def weights_digest(path: str) -> str:
    """Return 16 hex digits that identify initial weights by content."""
    return content_digest(weights_file(path))[:16]


def source_checkpoint(init: str) -> Path:
    """Return the last checkpoint of the run that `training.init` names.

    Raises:
        ConfigError: if it is not a run's folder, or the run has no checkpoint with a readable optimizer state.
    """
    folder = Path(init).expanduser()
    where = f"'{OPTIMIZER_KEY}' is true, but '{INIT_KEY}' is '{init}'"
    remedy = f"name the folder of a run with its checkpoints, or set '{OPTIMIZER_KEY}' to false"
    if folder.is_file():
        raise ConfigError(f"{where}, a file of weights alone, without an optimizer; {remedy}")
    found = checkpoints(folder / "checkpoints")
    if not found:
        raise ConfigError(f"{where}, which has weights but no checkpoints, so no optimizer; {remedy}")
    newest = found[-1]
    if (newest / "optimizer.pt").exists():
        raise ConfigError(f"{where}: {newest} was written by an older version as a pickle, which is not read; {remedy}")
    for name in optimizer_files(newest):
        if not (newest / name).is_file():
            raise ConfigError(f"{where}: {newest} has no {name}; {remedy}")
    return newest


def optimizer_digest(init: str) -> str:
    """Return 16 hex digits of the content of the optimizer state to restore.

    A sharded checkpoint's files hold the weights too, and depend on the number of processes that wrote it.
    """
    folder = source_checkpoint(init)
    content = "/".join(content_digest(folder / name) for name in optimizer_files(folder))
    return hashlib.sha256(content.encode()).hexdigest()[:16]
