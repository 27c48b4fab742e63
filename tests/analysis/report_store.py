"""Write studies with known numbers into an MLflow store, as a sweep does."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from PIL import Image

NET = "EfficientNet-Lite0 (ImageNet)@0a1b2c3d+score-clip@4e5f6a7b"
PROMPTS = [
    "a red car on the road",
    "two small birds in the sky",
    "a ship",
    "a frog beside a very large brown horse, under a cloudy evening sky",
]
COSTS = {
    "cost/params": 1_234_567.0,
    "cost/active_params": 1_100_000.0,
    "cost/gflops_per_image": 0.1234,
    "cost/train_flops": 2.5e15,
    "cost/seconds": 312.0,
    "cost/usd": 0.01,
}


def study_file(arms: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], **changes: Any) -> dict[str, Any]:
    """Return the content of study.yaml of a masking study with these arms."""
    return {
        "question": "Does deferring the mask behind a patch-mixer keep quality at high masking ratios?",
        "paper": {"section": "4", "claim": "deferred masking beats naive masking"},
        "baseline": "none",
        "holds": "steps",
        "arms": {arm: dict(overrides) for arm, overrides in arms.items()},
        "seeds": list(seeds),
        "metrics": {"primary": "clip_fd", "direction": "minimize"},
        "figure": {"x": "model.masking.ratio", "hue": "model.masking.method"},
    } | changes


def arm(method: str, ratio: float) -> dict[str, Any]:
    return {"model.masking.method": method, "model.masking.ratio": ratio}


ARMS = {
    "none": arm("none", 0.0),
    "naive_50": arm("naive", 0.5),
    "naive_75": arm("naive", 0.75),
    "deferred_50": arm("deferred", 0.5),
    "deferred_75": arm("deferred", 0.75),
}
SCORES = {  # clip_fd by arm, seeds 0, 1, 2
    "none": [10.0, 11.0, 12.5],
    "naive_50": [16.0, 17.5, 18.0],
    "naive_75": [25.0, 26.5, 27.0],
    "deferred_50": [10.5, 10.75, 13.0],
    "deferred_75": [13.0, 14.25, 15.0],
}


class StudyWriter:
    """Write one launch of a study into the store at `uri`, with artifacts in `root`."""

    def __init__(self, uri: str, root: Path, name: str, study: Mapping[str, Any], scale: str = "demo") -> None:
        self.client = MlflowClient(uri)
        self.name, self.scale, self.study = name, scale, study
        found = self.client.get_experiment_by_name(f"microdit/{name}")
        location = (root / "artifacts" / name).as_uri()
        self.experiment = found.experiment_id if found else self.client.create_experiment(f"microdit/{name}", location)
        tags = {"microdit.role": "study", "microdit.study": name, "microdit.scale": scale}
        self.parent = self.client.create_run(self.experiment, tags=tags).info.run_id
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "study.yaml"
            path.write_text(yaml.safe_dump(dict(study), sort_keys=False))
            self.client.log_artifact(self.parent, str(path))
        time.sleep(0.002)  # launches are ordered by milliseconds

    def run(
        self,
        arm_name: str,
        seed: int,
        final: Mapping[str, float],
        status: str = "FINISHED",
        images: bool = True,
        curves: Mapping[str, Sequence[float]] | None = None,
        config: Mapping[str, Any] | None = None,
        **tags: str,
    ) -> str:
        """Write a trial with these final metrics and this config.yaml; return its id."""
        given = {"role": "trial", "study": self.name, "arm": arm_name, "scale": self.scale, "trial_key": "k" * 16}
        given |= {"data_fingerprint": "f" * 64, "feature_net": NET, "samples": "512", "device": "cpu"}
        given |= {"versions": "python 3.11.7, torch 2.14.1"}
        given |= {"git_commit": "0123456789abcdef", "git_dirty": "false"} | tags
        all_tags = {f"microdit.{key}": value for key, value in given.items()} | {"mlflow.parentRunId": self.parent}
        run_id = self.client.create_run(self.experiment, tags=all_tags, run_name=f"{arm_name}/seed{seed}").info.run_id
        params = {"seed": seed} | dict(self.study["arms"][arm_name])
        slower = 20.0 * list(self.study["arms"]).index(arm_name)  # arms share their FLOPs, not their time
        costs = COSTS | {"cost/seconds": COSTS["cost/seconds"] + slower}
        metrics = {f"final/{name}": value for name, value in final.items()} | costs if final else {}
        batch = [Metric(name, value, 0, 100) for name, value in metrics.items()]
        for name, values in (curves or {}).items():
            batch += [Metric(name, value, 0, 25 * (i + 1)) for i, value in enumerate(values)]
        self.client.log_batch(run_id, batch, [Param(key, str(value)) for key, value in params.items()])
        if config:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "config.yaml"
                path.write_text(yaml.safe_dump(dict(config)))
                self.client.log_artifact(run_id, str(path))
        if images and status == "FINISHED":
            self._images(run_id, seed)
        self.client.set_terminated(run_id, status)
        time.sleep(0.002)
        return run_id

    def _images(self, run_id: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        tiles = [np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))) for _ in PROMPTS]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            Image.fromarray(np.concatenate(tiles, axis=1).astype(np.uint8)).save(root / "final.png")
            listing = {"tile": 64, "prompts": PROMPTS, "labels": [1, 2, 8, 6]}
            (root / "prompts.json").write_text(json.dumps(listing))
            self.client.log_artifacts(run_id, str(root), "samples")


def final(clip_fd: float, **others: float) -> dict[str, float]:
    """Return final metrics in the form of an evaluation, derived from one number."""
    values = {
        "clip_fd": clip_fd,
        "fd": 10 * clip_fd,
        "kid": clip_fd / 1000,
        "clip_score": 30 - clip_fd / 10,
        "class_accuracy": 1 - clip_fd / 100,
        "val_loss": 0.3 + clip_fd / 1000,
        "samples": 512.0,
        "reference_images": 2048.0,
        "fd_floor": 42.5,
        "clip_fd_floor": 1.25,
        "clip_score_real": 31.5,
    }
    return values | others
