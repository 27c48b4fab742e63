"""Train for two steps on import, so that lazily imported libraries are loaded in every fork."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import torch

import sweeps.execution.launch
import sweeps.execution.worker  # noqa: F401
from microdit.pipeline.train_and_evaluate import run
from sweeps.config.hydra_compose import compose_config
from sweeps.execution.queue.optuna_storage import open_storage
from sweeps.tracking.mlflow_logger import MlflowLogger, RunSpec
from sweeps.tracking.mlflow_store import Store

SETTINGS = "scale=smoke training.steps=2 training.batch_size=8 data.train_size=64 evaluation.samples=0"


def warm_up(folder: Path) -> None:
    torch.set_num_threads(1)
    open_storage(f"sqlite:///{folder / 'optuna.db'}").engine.dispose()
    store = Store(f"sqlite:///{folder / 'mlflow.db'}", folder)
    spec = RunSpec(store.experiment("warm"), "warm", {}, {"seed": 0}, "warm")
    words = [*SETTINGS.split(), f"cache_dir={folder / 'cache'}", f"output_dir={folder / 'run'}"]
    run(compose_config(words), MlflowLogger(store.uri, spec))


with (
    tempfile.TemporaryDirectory() as _folder,
    open(os.devnull, "w") as _nowhere,
    contextlib.redirect_stdout(_nowhere),
    contextlib.redirect_stderr(_nowhere),
):
    warm_up(Path(_folder))
