"""Checkpoints: a folder a step, renamed into place whole, from which training goes on bit for bit.

    checkpoints/step_00000500/{weights,ema,alignment}.safetensors, optimizer.pt, state.json

Random streams need no state: they are functions of (seed, stream, step).
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from microdit.alignment.loss import Alignment
from microdit.errors import CheckpointError
from microdit.files import atomic_path
from microdit.model import DiT
from microdit.training.shards import load_optimizer, load_weights, whole_net, whole_optimizer, whole_weights


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
        """The network to evaluate, whole: the average once it has begun, the raw weights before.

        Where weights are shared out, all processes must ask for it.
        """
        return whole_net(self.ema.module if int(self.ema.n_averaged) else self.net)  # type: ignore[arg-type]


def checkpoint_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints under `root`, oldest first."""
    return sorted(path for path in root.glob("step_*") if (path / "state.json").is_file())


def save_checkpoint(root: Path, state: TrainState, key: str, keep: int, writes: bool = True) -> None:
    """Writes the checkpoint of `state.step`, then removes all but the newest `keep`.

    All processes of a run must call it, but only one `writes`.
    Raises CheckpointError where it can't be written (a full disk); the older ones stay.
    """
    target = checkpoint_folder(root, state.step)
    modules = {"weights": state.net, "ema": state.ema.module, "alignment": state.alignment}
    tensors = {name: whole_weights(module) for name, module in modules.items()}
    optimizer = whole_optimizer(state.optimizer)
    if not writes:
        return
    try:
        with atomic_path(target) as folder:
            folder.mkdir()
            for name, weights in tensors.items():
                save_file(weights, folder / f"{name}.safetensors")
            torch.save(optimizer, folder / "optimizer.pt")
            (folder / "state.json").write_text(json.dumps(_facts(state, key)))
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError is what torch makes of a full disk
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{target}: can't be written ({reason}); is the disk full?") from None
    for old in checkpoints(root)[:-keep]:
        shutil.rmtree(old)


def _facts(state: TrainState, key: str) -> dict[str, Any]:
    return {
        "step": state.step,
        "seconds": state.seconds,
        "averaged": int(state.ema.n_averaged),
        "interval": asdict(state.interval),
        "training_key": key,
    }


def load_checkpoint(folder: Path, state: TrainState, key: str) -> None:
    """Restores `state` in place; raises CheckpointError where other settings or a damaged file stand behind it."""
    try:
        facts = json.loads((folder / "state.json").read_text())
        if facts["training_key"] != key:
            raise CheckpointError(
                f"{folder}: was written by a run with other settings (key {facts['training_key']}, this one is {key}); "
                "give this run another output_dir, or remove that folder"
            )
        load_weights(state.net, load_file(folder / "weights.safetensors"))
        load_weights(state.ema.module, load_file(folder / "ema.safetensors"))
        load_weights(state.alignment, load_file(folder / "alignment.safetensors"))
        load_optimizer(state.optimizer, torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder}: can't be resumed ({reason}); remove it to go on from an older one") from None
    state.ema.n_averaged.fill_(facts["averaged"])
    state.step, state.seconds = facts["step"], facts["seconds"]
    state.interval = Interval(**facts.get("interval", {}))  # older checkpoints have none
