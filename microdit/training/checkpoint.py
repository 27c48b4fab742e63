"""Write and read checkpoints, from which training resumes bit for bit.

There is one folder per step; it is renamed into place when complete.

    checkpoints/step_00000500/{weights,ema,alignment,optimizer}.safetensors, optimizer.json, state.json

If weights are sharded, each process writes its rows of all tensors, and the main process writes where they are.

    checkpoints/step_00000500/shard_{00000,00001}_of_00002.safetensors, index.json, optimizer.json, state.json

`state.json` holds the SHA-256 of every other file and a digest of itself. Every file is verified before it is read.
Random streams need no state: they are functions of (seed, stream, step).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
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
from microdit.common.files.tensors import write_tensors
from microdit.model import DiT
from microdit.training.fsdp import (
    is_shared,
    is_split,
    load_optimizer,
    load_weights,
    text_of_main,
    texts_of_all,
    unsharded_copy,
)
from microdit.training.optim.averaged_weights import AveragedWeights
from microdit.training.optim.optimizer_file import decode_optimizer, encode_optimizer
from microdit.training.run_files import INDEX, REST, checkpoint_folder, checkpoints, shard_name
from microdit.training.stored_tensors import StoredTensor, TensorFiles, sharded_parts, whole_parts

STATE = "state.json"
MODULES, OPTIMIZER = ("weights", "ema", "alignment"), "optimizer"  # parts of the state with tensors
FORMAT = 2  # 1: the optimizer's state was a pickle (optimizer.pt)
SCRATCH_EXTRA_LENGTH = 10  # characters that the name of a scratch folder has more than its target's

Parts = Mapping[str, Mapping[str, Tensor]]  # tensors by part and name


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
    """Hold a checkpoint's content."""

    facts: Mapping[str, Any]  # of state.json
    modules: Mapping[str, Mapping[str, StoredTensor]]  # tensors by name, of each of MODULES
    optimizer: Mapping[str, Any]  # a state dict with stored tensors


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
    device = next(state.net.parameters()).device
    sharded = any(is_shared(parameter) for parameter in state.parameters())
    if not (writes or sharded):
        return
    parts, rest = _contents(state)
    try:
        with atomic_path(target) if writes else nullcontext(Path()) as folder:
            if writes:
                folder.mkdir()
            digests = {}
            if sharded:
                digests = _write_shards(folder, target, parts, device)
            else:
                _write_whole(folder, parts)
            if writes:
                (folder / REST).write_text(rest, encoding="utf-8")
                others = [path for path in sorted(folder.iterdir()) if path.name not in digests]
                digests |= {path.name: file_digest(path) for path in others}
                facts = {"format": FORMAT, **_facts(state), **asdict(identity), "files": digests}
                (folder / STATE).write_text(signed(facts), encoding="utf-8")
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{target}: can't be written ({reason}); is the disk full?") from None
    if writes:
        for old in checkpoints(root)[:-keep]:
            remove(old)


def _contents(state: TrainState) -> tuple[Parts, str]:
    """Return the tensors of a state by part and name, sharded or not, and JSON of the rest of the optimizer's state."""
    modules: Mapping[str, nn.Module] = {"weights": state.net, "ema": state.ema.module, "alignment": state.alignment}
    rest, moments = encode_optimizer(state.optimizer.state_dict())
    return {name: modules[name].state_dict() for name in MODULES} | {OPTIMIZER: moments}, rest


def _write_whole(folder: Path, parts: Parts) -> None:
    """Write one file per part."""
    for part, tensors in parts.items():
        write_tensors(folder / f"{part}.safetensors", {name: _copied(tensor) for name, tensor in tensors.items()})


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, since safetensors rejects tensors that share memory, as those of an optimizer may."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _write_shards(folder: Path, target: Path, parts: Parts, device: torch.device) -> dict[str, str]:
    """Write this process's file, and the main process's index; return the digests of all processes' files.

    It returns once all processes have written their files.

    Args:
        folder: the main process's temporary folder.
        target: what it will be renamed to.
        parts: the tensors.
        device: of the communication.
    """
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    length = len(target.name) + SCRATCH_EXTRA_LENGTH
    scratch = text_of_main(folder.parent.name if rank == 0 else " " * length, device)
    own: dict[str, Tensor] = {}
    index: dict[str, dict[str, Any]] = {}
    for part, tensors in parts.items():
        index[part] = {}
        for name, tensor in tensors.items():
            index[part][name] = {"shape": [*tensor.shape], "split": is_split(tensor)}
            rows = tensor.to_local() if is_split(tensor) else tensor  # type: ignore[attr-defined]
            if len(rows) if is_split(tensor) else rank == 0:
                own[f"{part}/{name}"] = _copied(rows)
    path = target.parent / scratch / target.name / shard_name(rank, processes)
    write_tensors(path, own)
    if rank == 0:
        (folder / INDEX).write_text(json.dumps({"processes": processes, "parts": index}), encoding="utf-8")
    digests = texts_of_all(file_digest(path), device)
    return {shard_name(process, processes): digest for process, digest in enumerate(digests)}


def _facts(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "seconds": state.seconds,
        "averaged": state.ema.updates,
        "interval": asdict(state.interval),
    }


def read_checkpoint(folder: Path, identity: Identity | None = None) -> StoredCheckpoint:
    """Verify a checkpoint.

    Args:
        folder: of the checkpoint.
        identity: the run that must have written it; None accepts any.

    Returns:
        Its content; tensors are read when they are needed.

    Raises:
        CheckpointError: if a file is missing, truncated or damaged, if the checkpoint has the older format, or if
            another run wrote it. The message names the file or the difference.
    """
    return _open_checkpoint(folder, identity, every_file=True)


def _open_checkpoint(folder: Path, identity: Identity | None, every_file: bool) -> StoredCheckpoint:
    """Read what a checkpoint contains; verify every file, or only those that are read."""
    try:
        facts = _read_facts(folder)
        if identity is not None:
            _check_identity(folder, facts, identity)
        files = TensorFiles(folder, facts["files"])
        for name in facts["files"] if every_file else (REST,):
            files.verify(name)
        return StoredCheckpoint(facts, _stored_parts(files, MODULES), stored_optimizer(files))
    except _Foreign:
        raise
    except CheckpointError as error:
        raise _damaged(folder, str(error)) from None


def _stored_parts(files: TensorFiles, parts: tuple[str, ...]) -> dict[str, dict[str, StoredTensor]]:
    return sharded_parts(files, parts) if (files.folder / INDEX).is_file() else whole_parts(files, parts)


def stored_optimizer(files: TensorFiles) -> dict[str, Any]:
    """Return the optimizer's state dict in a checkpoint, with stored tensors.

    Args:
        files: of the checkpoint.

    Returns:
        The state dict.

    Raises:
        CheckpointError: if a file is missing or damaged; names it.
    """
    return decode_optimizer(files.folder / REST, _stored_parts(files, (OPTIMIZER,))[OPTIMIZER])


def load_checkpoint(folder: Path, state: TrainState, identity: Identity) -> None:
    """Restore `state` in place from a checkpoint, sharded or not.

    Args:
        folder: of the checkpoint.
        state: a state built with the same settings.
        identity: the run that must have written it.

    Raises:
        CheckpointError: as `read_checkpoint`, or if a tensor's name or shape does not fit `state`.
    """
    # A process of a sharded run reads, and so verifies, few of the files.
    stored = _open_checkpoint(folder, identity, every_file=False)
    try:
        load_weights(state.net, stored.modules["weights"])
        load_weights(state.ema.module, stored.modules["ema"])
        load_weights(state.alignment, stored.modules["alignment"])
        load_optimizer(state.optimizer, stored.optimizer)
        facts = stored.facts
        state.ema.updates = int(facts["averaged"])
        state.step, state.seconds = int(facts["step"]), float(facts["seconds"])
        state.interval = PartialLogWindow(**facts["interval"])
    except (CheckpointError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
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
