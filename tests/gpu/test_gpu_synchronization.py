"""Test that neither a training step nor the feed of the next ones waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_config import with_changes

from microdit.config.identity import ALGORITHM
from microdit.config.schema import Config
from microdit.model.masking.registry import MASKING_METHODS
from microdit.pipeline.inputs import build_accelerator
from microdit.pipeline.run_logger import NullLogger
from microdit.training import trainer
from microdit.training.checkpoint import Identity
from sweeps.planning.random_data import RandomData

STEPS = 9
WATCHED = range(3, 8)  # steps that must not wait: not those that allocate first, nor the last one, which is logged


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("method", MASKING_METHODS)
def test_steps_do_not_wait(
    method: str,
    resident: bool,
    smoke_config: Config,
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[..., None],
):
    changes = {
        "output_dir": str(tmp_path),
        "training.device": device.type,
        "training.precision": "bf16",
        "training.steps": STEPS,
        "training.log_every": STEPS,
        "training.sample_every": 0,
        "training.checkpoint_every": 0,
        "model.masking.method": method,
        "model.masking.ratio": 0.0 if method == "none" else 0.5,
    }
    config = with_changes(smoke_config, changes)
    true_step, done = trainer.optimizer_step, []

    def step(*arguments: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error" if len(done) in WATCHED else "default")
        done.append(method)
        return true_step(*arguments)

    monkeypatch.setattr(trainer, "optimizer_step", step)
    accelerator = build_accelerator(config)
    data: Any = RandomData(config, device if resident else torch.device("cpu"))
    try:
        trainer.train(config, data, data, Identity("", ALGORITHM, ""), NullLogger(), accelerator)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    figure("steps", len(done), at_least=STEPS)
    figure("of these watched", len(WATCHED))
