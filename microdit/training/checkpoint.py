"""Write and read checkpoints, from which training resumes bit for bit.

There is one folder per step; it is renamed into place when complete.

    checkpoints/step_00000500/{weights,ema,alignment,optimizer}.safetensors, optimizer.json, state.json

`state.json` holds the SHA-256 of every other file and a digest of itself; all are verified before anything is loaded.
Random streams need no state: they are functions of (seed, stream, step).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from microdit.alignment.loss import Alignment
from microdit.common.errors import CheckpointError
from microdit.common.files.atomic import atomic_path, remove
from microdit.common.files.digests import file_digest, read_signed, signed
from microdit.common.files.tensors import read_tensors, write_tensors
from microdit.model import DiT
from microdit.training.fsdp import load_optimizer, load_weights, unsharded_copy, whole_optimizer, whole_weights
from microdit.training.optim.averaged_weights import AveragedWeights
from microdit.training.optim.optimizer_file import read_optimizer, write_optimizer
from microdit.training.run_files import REST, checkpoint_folder, checkpoints

STATE = "state.json"
MODULES = ("weights", "ema", "alignment")  # parts of the state with one file of tensors each
FORMAT = 2  # 1: the optimizer's state was a pickle (optimizer.pt)


@dataclass(frozen=True)
class PartialLogWindow:
    """Hold sums over the steps since the loss was last logged.

    They are stored in checkpoints, so that an interruption does not change the logged curve.
    """

    sums: Mapping[str, float] = field(default_factory=dict)  # of each logged value, by name
    steps: int = 0
    seconds: float = 0.0


@dataclass
class TrainState:
    """Hold everything that training changes."""

    net: DiT
    alignment: Alignment
    ema: AveragedWeights
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    interval: PartialLogWindow = field(default_factory=PartialLogWindow)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that the optimizer updates."""
        yield from self.net.parameters()
        yield from self.alignment.parameters()

    @property
    def averaged(self) -> DiT:
        """Return the unsharded network to evaluate.

        It has averaged weights once averaging has begun, raw weights before. If weights are sharded, all processes must
        read it.
        """
        return unsharded_copy(self.ema.module if self.ema.updates else self.net)


@dataclass(frozen=True)
class Identity:
    """Identify a run.

    A checkpoint can be resumed only with the same settings, algorithm and data.
    """

    training_key: str
    algorithm: int
    data: str  # fingerprint of all that is read in training: images, captions, features to align with


@dataclass(frozen=True)
class StoredCheckpoint:
    """Hold a checkpoint's verified content."""

    facts: Mapping[str, Any]  # of state.json
    modules: Mapping[str, Mapping[str, Tensor]]  # tensors by name, of each of MODULES
    optimizer: Mapping[str, Any]  # a state dict


def save_checkpoint(root: Path, state: TrainState, identity: Identity, keep: int, writes: bool = True) -> None:
    """Write the checkpoint of `state.step`, then remove all but the newest ones.

    All processes of a run must call it.

    Args:
        root: folder of the run's checkpoints.
        state: what to store.
        identity: of the run; stored with the state.
        keep: number of checkpoints to keep, at least 1.
        writes: whether this process writes; exactly one of the run must.

    Raises:
        CheckpointError: if it can't be written, such as on a full disk; older checkpoints stay.
    """
    target = checkpoint_folder(root, state.step)
    modules: Mapping[str, nn.Module] = {"weights": state.net, "ema": state.ema.module, "alignment": state.alignment}
    tensors = {name: whole_weights(modules[name]) for name in MODULES}
    optimizer = whole_optimizer(state.optimizer)
    if not writes:
        return
    try:
        with atomic_path(target) as folder:
            folder.mkdir()
            for name, weights in tensors.items():
                write_tensors(folder / f"{name}.safetensors", weights)
            write_optimizer(folder, optimizer)
            digests = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
            facts = {"format": FORMAT, **_facts(state), **asdict(identity), "files": digests}
            (folder / STATE).write_text(signed(facts), encoding="utf-8")
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{target}: can't be written ({reason}); is the disk full?") from None
    for old in checkpoints(root)[:-keep]:
        remove(old)


def _facts(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "seconds": state.seconds,
        "averaged": state.ema.updates,
        "interval": asdict(state.interval),
    }


def read_checkpoint(folder: Path, identity: Identity | None = None) -> StoredCheckpoint:
    """Read and verify a checkpoint.

    Args:
        folder: of the checkpoint.
        identity: the run that must have written it; None accepts any.

    Returns:
        Its content, with tensors on the CPU.

    Raises:
        CheckpointError: if a file is missing, truncated or damaged, if the checkpoint has the older format, or if
            another run wrote it. The message names the file or the difference.
    """
    try:
        facts = _read_facts(folder)
        if identity is not None:
            _check_identity(folder, facts, identity)
        _check_files(folder, facts["files"])
        modules = {name: read_tensors(folder / f"{name}.safetensors", signed=True) for name in MODULES}
        return StoredCheckpoint(facts, modules, read_optimizer(folder))
    except _Foreign:
        raise
    except CheckpointError as error:
        raise _damaged(folder, str(error)) from None


def load_checkpoint(folder: Path, state: TrainState, identity: Identity) -> None:
    """Restore `state` in place from a verified checkpoint.

    Args:
        folder: of the checkpoint.
        state: a state built with the same settings.
        identity: the run that must have written it.

    Raises:
        CheckpointError: as `read_checkpoint`, or if a tensor's name or shape does not fit `state`.
    """
    stored = read_checkpoint(folder, identity)
    try:
        load_weights(state.net, stored.modules["weights"])
        load_weights(state.ema.module, stored.modules["ema"])
        load_weights(state.alignment, stored.modules["alignment"])
        load_optimizer(state.optimizer, stored.optimizer)
        facts = stored.facts
        state.ema.updates = int(facts["averaged"])
        state.step, state.seconds = int(facts["step"]), float(facts["seconds"])
        state.interval = PartialLogWindow(**facts["interval"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, " ".join(str(error).split())[:300]) from None


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{folder}: can't be resumed ({reason}); remove it to resume from an older checkpoint")


class _Foreign(CheckpointError):
    """Report a sound checkpoint that another run wrote."""


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if (folder / "optimizer.pt").exists() and not (folder / REST).exists():
        raise _Foreign(
            f"{folder}: was written by an older version, whose optimizer.pt is a pickle and is never opened; give this "
            "run another output_dir, or remove the folder of its checkpoints to train anew"
        )
    try:
        facts = read_signed(path)
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, not {FORMAT}")
        if facts["step"] != int(folder.name.removeprefix("step_")):
            raise ValueError(f"its step is {facts['step']}")
        if not isinstance(facts["files"], dict):
            raise ValueError("'files' is not an object")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: can't be read as a checkpoint's state ({error!s:.200})") from None
    return facts


def _check_identity(folder: Path, facts: Mapping[str, Any], identity: Identity) -> None:
    advice = "give this run another output_dir, or remove the folder of its checkpoints to train anew"
    if facts.get("algorithm") != identity.algorithm:
        raise _Foreign(
            f"{folder}: was written by algorithm {facts.get('algorithm')}, and this is algorithm {identity.algorithm} "
            f"(see ALGORITHM in microdit/config/schema.py); {advice}"
        )
    if facts.get("training_key") != identity.training_key:
        raise _Foreign(
            f"{folder}: was written by a run with other settings (key {facts.get('training_key')}, this one is "
            f"{identity.training_key}); {advice}"
        )
    if facts.get("data") != identity.data:
        raise _Foreign(
            f"{folder}: was trained on other data (fingerprint {facts.get('data')}, now {identity.data}): images or "
            f"captions have changed since; {advice}"
        )


def _check_files(folder: Path, digests: Mapping[str, str]) -> None:
    for name, expected in digests.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        if file_digest(path) != expected:
            raise CheckpointError(f"{path}: wrong checksum: the file was changed or damaged since it was written")
