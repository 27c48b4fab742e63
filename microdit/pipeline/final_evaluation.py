"""What a trained network leaves behind: pictures of fixed prompts, scores on held-out captions, weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from microdit.config.schema import Config
from microdit.diffusion import Denoiser
from microdit.evaluation.config import METRICS
from microdit.evaluation.prompt_files import read_prompts
from microdit.evaluation.score import score
from microdit.pipeline.generate import generate
from microdit.pipeline.inputs import RunInputs
from microdit.pipeline.prompts import Prompts, held_out_prompts, written_prompts


def generate_and_score(
    config: Config, components: RunInputs, denoiser: Denoiser, accelerator: Accelerator
) -> dict[str, float]:
    """Draws `evaluation.samples` prompts and scores them; keys 'final/...'; all processes share the work.

    Prompts are held-out captions, or those of the file `evaluation.prompts`, whose classes nobody knows.
    Further noises (`evaluation.noises`) have their scores as 'final/noise1/...', 'final/noise2/...'.
    """
    count = config.evaluation.samples
    if not count:
        return {}
    prompts = evaluation_prompts(config, components, count)
    real = components.train_images if config.evaluation.reference_split == "train" else components.val_images
    cache = Path(config.cache_dir).expanduser() / "features"
    values: dict[str, float] = {}
    for noise in range(config.evaluation.noises):
        pictures = _draw(config, components, denoiser, accelerator, prompts, noise_stream(noise))
        if accelerator.is_main_process:
            scores = score(pictures, prompts.captions, prompts.labels, real, config.evaluation, cache)
            values |= prefix_scores(scores, noise)
    return values


def evaluation_prompts(config: Config, components: RunInputs, count: int) -> Prompts:
    """The first `count` prompts that `evaluation.prompts` asks for."""
    if config.evaluation.prompts is None:
        return held_out_prompts(components.val, range(count))
    return written_prompts(read_prompts(config.evaluation.prompts, count), components.text_encoder)


def noise_stream(noise: int) -> str:
    """Name of the random stream of evaluation noise 0, 1, ...; the first one's is that of a single evaluation."""
    return f"evaluation/noise{noise}" if noise else "evaluation"


def prefix_scores(scores: Mapping[str, float], noise: int) -> dict[str, float]:
    """Scores under the names that a run reports; of further noises only what depends on them."""
    if not noise:
        return {f"final/{name}": value for name, value in scores.items()}
    return {f"final/noise{noise}/{name}": value for name, value in scores.items() if name in METRICS}


def _draw(
    config: Config,
    components: RunInputs,
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
