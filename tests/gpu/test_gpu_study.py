"""Test that a short study with the settings of `scale=gpu` runs, and that its report is written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

STUDY = Path(__file__).parent / "short_study.yaml"
ROOT = Path(__file__).parents[2]
STEPS = 100
# scale=gpu, shortened from an hour to a minute
SHORT = [
    f"training.steps={STEPS}",
    "schedule.warmup_steps=20",
    "training.ema.start_step=50",
    "training.log_every=20",
    "training.val_every=50",
    "training.sample_every=0",
    "training.checkpoint_every=50",
    "data.train_size=2048",
    "data.val_size=512",
    "evaluation.samples=256",
    "evaluation.reference_count=512",
    "evaluation.kid_subset_size=128",
]


def run(module: str, *words: str) -> None:
    command = [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)
def test_a_short_study_gives_a_report(device: torch.device, tmp_path: Path, figure: Callable[..., None]):
    scale, changes = ("gpu", SHORT) if device.type == "cuda" else ("smoke", [])
    runs = tmp_path / "runs"
    begin = time.monotonic()
    run("sweeps.cli", f"study={STUDY}", f"scale={scale}", f"root={runs}", f"cache_dir={tmp_path / 'cache'}", *changes)
    figure("seconds of the launch", time.monotonic() - begin)
    finished = [json.loads(path.read_text()) for path in runs.glob("**/metrics.json")]
    figure("finished trials", len(finished), at_least=2)
    begin = time.monotonic()
    run("analysis.cli", STUDY.stem, f"tracking_uri=sqlite:///{runs}/mlflow.db", f"out={tmp_path / 'results'}")
    figure("seconds of the report", time.monotonic() - begin)
    figure("reports", len(list((tmp_path / "results").glob("**/report.html"))), at_least=1)
