"""Test on a GPU that steps of training do not wait for it, wherever random numbers are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from changed_config import with_changes

from microdit.config.schema import Config
from microdit.model.masking.registry import MASKING_METHODS
from microdit.pipeline.inputs import build_accelerator, build_components
from microdit.pipeline.run_logger import NullLogger
from microdit.pipeline.train_and_evaluate import run_identity
from microdit.training import trainer
from microdit.training.metrics import StepMetrics

STEPS, FIRST_WATCHED = 8, 3  # the first steps allocate memory


@pytest.mark.gpu
@pytest.mark.parametrize("draws", ["host", "device"])
@pytest.mark.parametrize("method", MASKING_METHODS)
def test_steps_do_not_wait_for_the_gpu(
    method: str, draws: str, smoke_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    changes = {
        "output_dir": str(tmp_path),
        "training.device": "cuda",
        "training.draws": draws,
        "training.steps": STEPS,
        "training.log_every": STEPS,
        "training.val_every": 0,
        "training.sample_every": 0,
        "training.checkpoint_every": 0,
        "model.masking.method": method,
        "model.masking.ratio": 0.0 if method == "none" else 0.5,
        "model.masking.route": {"before": 1, "after": 0},
    }
    config = with_changes(smoke_config, changes)
    rate, read, watched = trainer.learning_rate, StepMetrics.read, []

    def begin_step(step: int, *arguments: Any) -> float:
        if step >= FIRST_WATCHED:
            watched.append(step)
            torch.cuda.set_sync_debug_mode("error")
        return rate(step, *arguments)

    def end_of_run(*arguments: Any) -> dict[str, float]:
        torch.cuda.set_sync_debug_mode("default")
        return read(*arguments)

    monkeypatch.setattr(trainer, "learning_rate", begin_step)
    monkeypatch.setattr(StepMetrics, "read", end_of_run)
    components, accelerator = build_components(config, "cuda"), build_accelerator(config)
    identity = run_identity(config, components)
    try:
        trainer.train(config, components.train, components.val, identity, NullLogger(), accelerator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watched == [*range(FIRST_WATCHED, STEPS)]
