"""What a trained network leaves behind: pictures of fixed prompts, scores on held-out captions, weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor

from microdit.components import Components
from microdit.config import Config
from microdit.data.encoded import EncodedDataset
from microdit.diffusion import Denoiser
from microdit.evaluation import score
from microdit.files import atomic_path, write_text
from microdit.sampling import generate, save_png, strip
from microdit.training.checkpoint import TrainState
from microdit.training.recorder import Recorder


@dataclass(frozen=True)
class Prompts:
    """Held-out captions to draw: features (N, S, Y) beside their words and classes."""

    features: Tensor
    captions: tuple[str, ...]
    labels: tuple[int, ...]


def show_prompts(data: EncodedDataset, count: int) -> Prompts:
    """`count` captions to look at, one of each class in turn, the same for every run on this data."""
    by_class = {label: list(np.flatnonzero(data.labels == label)) for label in sorted(set(data.labels.tolist()))}
    indices: list[int] = []
    while len(indices) < min(count, len(data)):
        for rows in by_class.values():
            if rows and len(indices) < count:
                indices.append(int(rows.pop(0)))
    return prompts_of(data, indices)


def prompts_of(data: EncodedDataset, indices: list[int]) -> Prompts:
    """The captions of the given images."""
    features = data.batch(np.array(indices, np.int64))[1]
    return Prompts(features, tuple(data.caption(i) for i in indices), tuple(int(data.labels[i]) for i in indices))


def evaluate(config: Config, components: Components, denoiser: Denoiser, accelerator: Accelerator) -> dict[str, float]:
    """Draws `evaluation.samples` held-out captions and scores them; keys 'final/...'; all processes share the work."""
    count = config.evaluation.samples
    if not count:
        return {}
    prompts = prompts_of(components.val, list(range(count)))
    bounds = np.linspace(0, count, accelerator.num_processes + 1).astype(int)
    first, stop = bounds[accelerator.process_index], bounds[accelerator.process_index + 1]
    own = generate(
        denoiser,
        components.autoencoder,
        prompts.features[first:stop],
        config.sampler,
        config.evaluation.seed,
        "evaluation",
        first=int(first),
        guidance=config.evaluation.guidance,
    )
    pictures = np.concatenate(gather_object([own]))
    if not accelerator.is_main_process:
        return {}
    scores = score(
        pictures,
        prompts.captions,
        prompts.labels,
        components.train_images if config.evaluation.reference_split == "train" else components.val_images,
        config.evaluation,
        cache_dir=Path(config.cache_dir).expanduser() / "features",
    )
    return {f"final/{name}": value for name, value in scores.items()}


def keep_final(
    config: Config, state: TrainState, sigma_data: float, pictures: np.ndarray, shown: Prompts, recorder: Recorder
) -> None:
    """Writes averaged weights, the strip of shown pictures and their prompts, and hands them to the recorder."""
    output = Path(config.output_dir)
    with atomic_path(output / "model.safetensors") as temporary:
        weights = {name: tensor.detach().contiguous() for name, tensor in state.averaged.state_dict().items()}
        exact = torch.tensor(sigma_data, dtype=torch.float64)  # float32 would change the scores' last digits
        save_file(weights | {"sigma_data": exact}, temporary)
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
