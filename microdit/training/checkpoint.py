"""Checkpoints: a folder a step, renamed into place whole, from which training goes on bit for bit.

    checkpoints/step_00000500/{weights,ema,alignment}.safetensors, optimizer.pt, state.json

Random streams need no state: they are functions of (seed, stream, step).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from microdit.alignment.loss import Alignment
from microdit.errors import CheckpointError
from microdit.files import atomic_path
from microdit.model import DiT


@dataclass(frozen=True)
class Interval:
    """Sums over the steps since the last reading of the loss, so that a stop in between leaves no mark on the curve."""

    sums: Mapping[str, float] = field(default_factory=dict)  # of each reading, by its name
    steps: int = 0
    seconds: float = 0.0


@dataclass
class TrainState:
    """What training changes: the raw network, what is trained beside it, its average, the optimiser, steps, seconds."""

    net: DiT
    alignment: Alignment
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    interval: Interval = field(default_factory=Interval)

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that the optimiser updates."""
        yield from self.net.parameters()
        yield from self.alignment.parameters()

    @property
    def averaged(self) -> DiT:
        """The network to evaluate: the average once it has begun, the raw weights before."""
        return self.ema.module if int(self.ema.n_averaged) else self.net  # type: ignore[return-value]


def checkpoint_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints under `root`, oldest first."""
    return sorted(path for path in root.glob("step_*") if (path / "state.json").is_file())


def save_checkpoint(root: Path, state: TrainState, key: str, keep: int) -> Path:
    """Writes the checkpoint of `state.step`, then removes all but the newest `keep`.

    Raises CheckpointError where it can't be written (a full disk); the older ones stay.
    """
    target = checkpoint_folder(root, state.step)
    try:
        with atomic_path(target) as folder:
            folder.mkdir()
            _write(folder, state, key)
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError is what torch makes of a full disk
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{target}: can't be written ({reason}); is the disk full?") from None
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old)
    return target


def _write(folder: Path, state: TrainState, key: str) -> None:
    save_file(_tensors(state.net), folder / "weights.safetensors")
    save_file(_tensors(state.ema.module), folder / "ema.safetensors")
    save_file(_tensors(state.alignment), folder / "alignment.safetensors")
    torch.save(state.optimizer.state_dict(), folder / "optimizer.pt")
    facts = {
        "step": state.step,
        "seconds": state.seconds,
        "averaged": int(state.ema.n_averaged),
        "interval": asdict(state.interval),
        "training_key": key,
    }
    (folder / "state.json").write_text(json.dumps(facts))


def load_checkpoint(folder: Path, state: TrainState, key: str) -> None:
    """Restores `state` in place; raises CheckpointError where other settings or a damaged file stand behind it."""
    try:
        facts = json.loads((folder / "state.json").read_text())
        if facts["training_key"] != key:
            raise CheckpointError(
                f"{folder}: was written by a run with other settings (key {facts['training_key']}, this one is {key}); "
                "give this run another output_dir, or remove that folder"
            )
        state.net.load_state_dict(load_file(folder / "weights.safetensors"))
        state.ema.module.load_state_dict(load_file(folder / "ema.safetensors"))
        state.alignment.load_state_dict(load_file(folder / "alignment.safetensors"))
        state.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: can't be resumed ({reason}); remove it to go on from an older one") from None
    state.ema.n_averaged.fill_(facts["averaged"])
    state.step, state.seconds = facts["step"], facts["seconds"]
    state.interval = Interval(**facts.get("interval", {}))  # older checkpoints have none


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
