"""Save what a finished run keeps: weights, samples and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from microdit.common.files.atomic import atomic_path, write_text
from microdit.common.files.tensors import write_tensors
from microdit.config.schema import Config
from microdit.diffusion import Denoiser
from microdit.encoders.text_record import TextRecord
from microdit.pipeline.generate import save_png, strip
from microdit.pipeline.prompts import Prompts
from microdit.pipeline.run_logger import RunLogger
from microdit.training.fsdp import whole_weights


def export_final(
    config: Config, denoiser: Denoiser, pictures: np.ndarray, shown: Prompts, text: TextRecord, recorder: RunLogger
) -> None:
    """Write averaged weights with a record of their text features, shown samples and prompts; log them as artifacts."""
    output = Path(config.output_dir)
    with atomic_path(output / "model.safetensors") as temporary:
        exact = torch.tensor(denoiser.sigma_data, dtype=torch.float64)  # float32 would change the scores' last digits
        write_tensors(temporary, whole_weights(denoiser.net) | {"sigma_data": exact}, text.facts())
    save_png(strip(pictures), output / "samples" / "final.png")
    listing = {
        "tile": pictures.shape[1],
        "prompts": list(shown.captions),
        "labels": list(shown.labels),
    }
    write_text(output / "samples" / "prompts.json", json.dumps(listing, indent=1, ensure_ascii=False))
    recorder.artifact(output / "config.yaml")
    recorder.artifact(output / "samples" / "final.png", "samples")
    recorder.artifact(output / "samples" / "prompts.json", "samples")
