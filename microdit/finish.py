"""What a trained network leaves behind: pictures of fixed prompts, scores on held-out captions, weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from microdit.components import Components
from microdit.config import Config
from microdit.diffusion import Denoiser
from microdit.encoders.text_record import TextRecord
from microdit.evaluation import score
from microdit.evaluation.config import METRICS
from microdit.evaluation.prompts import read_prompts
from microdit.files import atomic_path, write_text
from microdit.prompts import Prompts, held_out_prompts, written_prompts
from microdit.sampling import generate, save_png, strip
from microdit.tensors import write_tensors
from microdit.training.recorder import Recorder
from microdit.training.shards import whole_weights


def evaluate(config: Config, components: Components, denoiser: Denoiser, accelerator: Accelerator) -> dict[str, float]:
    """Draws `evaluation.samples` prompts and scores them; keys 'final/...'; all processes share the work.

    Prompts are held-out captions, or those of the file `evaluation.prompts`, whose classes nobody knows.
    Further noises (`evaluation.noises`) have their scores as 'final/noise1/...', 'final/noise2/...'.
    """
    count = config.evaluation.samples
    if not count:
        return {}
    prompts = asked_prompts(config, components, count)
    real = components.train_images if config.evaluation.reference_split == "train" else components.val_images
    cache = Path(config.cache_dir).expanduser() / "features"
    values: dict[str, float] = {}
    for noise in range(config.evaluation.noises):
        pictures = _draw(config, components, denoiser, accelerator, prompts, noise_stream(noise))
        if accelerator.is_main_process:
            scores = score(pictures, prompts.captions, prompts.labels, real, config.evaluation, cache)
            values |= named_scores(scores, noise)
    return values


def asked_prompts(config: Config, components: Components, count: int) -> Prompts:
    """The first `count` prompts that `evaluation.prompts` asks for."""
    if config.evaluation.prompts is None:
        return held_out_prompts(components.val, range(count))
    return written_prompts(read_prompts(config.evaluation.prompts, count), components.text_encoder)


def noise_stream(noise: int) -> str:
    """Name of the random stream of evaluation noise 0, 1, ...; the first one's is that of a single evaluation."""
    return f"evaluation/noise{noise}" if noise else "evaluation"


def named_scores(scores: Mapping[str, float], noise: int) -> dict[str, float]:
    """Scores under the names that a run reports; of further noises only what depends on them."""
    if not noise:
        return {f"final/{name}": value for name, value in scores.items()}
    return {f"final/noise{noise}/{name}": value for name, value in scores.items() if name in METRICS}


def _draw(
    config: Config,
    components: Components,
    denoiser: Denoiser,
    accelerator: Accelerator,
    prompts: Prompts,
    stream: str,
) -> np.ndarray:
    """A picture of each prompt (N, H, W, 3), each process drawing its part; all have them all afterwards."""
    bounds = np.linspace(0, len(prompts.captions), accelerator.num_processes + 1).astype(int)
    first, stop = map(int, bounds[accelerator.process_index :][:2])
    own = generate(
        denoiser,
        components.autoencoder,
        prompts.features.part(first, stop),
        config.sampler,
        config.evaluation.seed,
        stream,
        first=first,
        guidance=config.evaluation.guidance,
    )
    return np.concatenate(gather_object([own]))


def keep_final(
    config: Config, denoiser: Denoiser, pictures: np.ndarray, shown: Prompts, text: TextRecord, recorder: Recorder
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
