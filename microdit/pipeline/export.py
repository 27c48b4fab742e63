"""Save what a finished run keeps: weights, samples and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from microdit.common.files.atomic import write_text
from microdit.config.schema import Config
from microdit.diffusion import Objective
from microdit.encoders.text_record import TextRecord
from microdit.pipeline.generate import save_png, strip
from microdit.pipeline.pretrained import save_weights
from microdit.pipeline.prompts import Prompts
from microdit.pipeline.run_logger import RunLogger
from microdit.training.run_files import WEIGHTS


def export_final(
    config: Config, denoiser: Objective, images: np.ndarray, shown: Prompts, text: TextRecord, recorder: RunLogger
) -> None:
    """Write averaged weights, sample images and prompts, and log the latter two.

    The weights come with a record of their text features.

    Args:
        config: names the run's folder.
        denoiser: the network with averaged weights.
        images: (N, H, W, 3) uint8, one per prompt.
        shown: the prompts.
        text: which text features the network was trained on.
        recorder: receives config.yaml and the samples as artifacts.
    """
    output = Path(config.output_dir)
    save_weights(denoiser, output / WEIGHTS, text)
    save_png(strip(images), output / "samples" / "final.png")
    listing = {
        "tile": images.shape[1],
        "prompts": list(shown.captions),
        "labels": list(shown.labels),
    }
    write_text(output / "samples" / "prompts.json", json.dumps(listing, indent=1, ensure_ascii=False))
    recorder.artifact(output / "config.yaml")
    recorder.artifact(output / "samples" / "final.png", "samples")
    recorder.artifact(output / "samples" / "prompts.json", "samples")
