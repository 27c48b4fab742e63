"""Time the end of a trial: sampling, decoding, scoring, sample images and validation.

python tests/benchmarks/sample_and_score.py [KEY=VALUE ...] [--rounds 3]

The trial is `scale=demo` unless overridden. Its network is untrained, which costs the same. Sampling and decoding take
turns with the former way, without cached captions and in batches of 64, so that a load on the machine slows both alike.
Seconds are CPU time on a CPU. Each round scores anew; real images are in the cache after the first.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from microdit.common.rng import generator
from microdit.config.device import choose_device
from microdit.config.schema import Config
from microdit.diffusion import EDM, Objective, guided, sample
from microdit.evaluation.score import score
from microdit.model import DiT
from microdit.model.conditioning import CachedCaptions
from microdit.pipeline.evaluate import evaluation_prompts
from microdit.pipeline.generate import generate, initial_noise, sampling_batch
from microdit.pipeline.inputs import RunInputs, build_components
from microdit.pipeline.prompts import Prompts, shown_prompts
from microdit.training.validation import validate
from sweeps.config.hydra_compose import compose_config

FORMER_BATCH = 64  # images per pass of the former way
FORMER, NOW = "former", "now"
Result = TypeVar("Result")


@dataclass
class Trial:
    """A trial that has been trained, and the seconds of its end's stages."""

    config: Config
    inputs: RunInputs
    denoiser: Objective
    prompts: Prompts
    device: torch.device
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def time(self, stage: str, way: str, work: Callable[[], Result]) -> Result:
        """Run one stage and add up its seconds in this round."""
        begin = self._clock()
        result = work()
        self.seconds.setdefault((stage, way), [0.0])[-1] += self._clock() - begin
        return result

    def next_round(self) -> None:
        for values in self.seconds.values():
            values.append(0.0)

    def _clock(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def latents(self, rows: range, cached: bool) -> Tensor:
        """Return latents of some prompts."""
        net, config = self.denoiser.net.config, self.config.sampler
        features = self.prompts.features[rows.start : rows.stop].to(self.device)
        noise = initial_noise(0, "evaluation", rows, (net.in_channels, net.input_size, net.input_size))
        captions = CachedCaptions(features) if cached else features
        model = guided(self.denoiser, captions, config.guidance, config.guidance_interval, config.guidance_by)
        return sample(model, noise.to(self.device), config, [generator(0, "churn", i) for i in rows])


def open_trial(overrides: Sequence[str]) -> Trial:
    """Return a trial whose network has random weights."""
    config = compose_config(["scale=demo", *overrides])
    device = choose_device(config)
    if device.type == "cpu":
        torch.set_num_threads(config.training.threads)
    inputs = build_components(config, device)
    net = DiT(config.model, seed=0)
    for name, parameter in net.named_parameters():
        if not parameter.count_nonzero():  # initial zeros would hide captions and noise levels
            torch.nn.init.normal_(parameter, std=0.02, generator=generator(0, name))
    prompts = evaluation_prompts(config, inputs, config.evaluation.samples)
    return Trial(config, inputs, EDM(net, 0.5).eval().to(device), prompts, device)


def draw(trial: Trial, way: str, rows: range) -> tuple[Tensor, np.ndarray]:
    """Return latents and images of some prompts, drawn in one of the two ways."""
    size = FORMER_BATCH if way == FORMER else sampling_batch(trial.denoiser.net.config, trial.device)
    parts = [range(i, min(i + size, rows.stop)) for i in range(rows.start, rows.stop, size)]
    latents = [trial.time("sampling", way, lambda part=part: trial.latents(part, way == NOW)) for part in parts]
    decode = trial.inputs.autoencoder.decode
    images = [trial.time("decoding", way, lambda z=z: decode(z).cpu().numpy()) for z in latents]
    return torch.cat(latents), np.concatenate(images)


def one_round(trial: Trial) -> float:
    """Time all stages once; return the largest difference of latents between the two ways of sampling."""
    config, inputs, prompts = trial.config, trial.inputs, trial.prompts
    count, gap, images = config.evaluation.samples, 0.0, []
    for first in range(0, count, FORMER_BATCH):
        rows = range(first, min(first + FORMER_BATCH, count))
        (former, _), (now, decoded) = (draw(trial, way, rows) for way in (FORMER, NOW))
        gap = max(gap, (now - former).abs().max().item())
        images.append(decoded)
    real = inputs.train_images if config.evaluation.reference_split == "train" else inputs.val_images
    cache = Path(config.cache_dir).expanduser() / "features"
    scored = (np.concatenate(images), prompts.captions, prompts.labels, real, config.evaluation, cache)
    trial.time("scoring", NOW, lambda: score(*scored))
    shown = shown_prompts(inputs.val, config.training.sample_count)
    shown_again = (trial.denoiser, inputs.autoencoder, shown.features, config.sampler, 0)
    trial.time("sample images, once", NOW, lambda: generate(*shown_again))
    trial.time("validation, once", NOW, lambda: validate(trial.denoiser, inputs.val, config))
    return gap


def table(trial: Trial, gap: float) -> str:
    """Return the median seconds of each stage, and the ratio to the former way."""
    lines = [f"{'stage':24s} {'seconds':>8s} {'spread':>14s} {'former':>8s} {'ratio':>6s}"]
    for stage, way in trial.seconds:
        if way == FORMER:
            continue
        now, former = (trial.seconds.get((stage, each), []) for each in (NOW, FORMER))
        spread = f"{min(now):.2f} to {max(now):.2f}"
        line = f"{stage:24s} {statistics.median(now):8.2f} {spread:>14s}"
        if former:
            ratios = [a / b for a, b in zip(former, now, strict=True)]
            line += f" {statistics.median(former):8.2f} {statistics.median(ratios):5.2f}x"
        lines.append(line)
    samples, threads = trial.config.evaluation.samples, torch.get_num_threads()
    head = f"{samples} samples, {trial.device.type}, {threads} thread(s); latents differ by at most {gap:.1e}"
    return "\n".join([head, *lines])


def bench_end(overrides: Sequence[str] = (), rounds: int = 3) -> str:
    """Return a table of the seconds that the end of a trial takes.

    Args:
        overrides: of the configuration.
        rounds: repetitions, of which medians are shown; a first one is not counted.
    """
    trial = open_trial(overrides)
    one_round(trial)
    trial.seconds.clear()
    gap = 0.0
    for number in range(rounds):
        if number:
            trial.next_round()
        gap = max(gap, one_round(trial))
    return table(trial, gap)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Time the end of a trial.")
    parser.add_argument("overrides", nargs="*", help="settings, such as evaluation.samples=64")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default 3)")
    options = parser.parse_args()
    logging.getLogger("microdit").setLevel(logging.ERROR)
    print(bench_end(options.overrides, options.rounds))
