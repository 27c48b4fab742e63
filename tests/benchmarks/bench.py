"""Measure training, sampling, scoring, the data feed, start-up, the queue and reports: `make bench`.

python tests/benchmarks/bench.py [SUITE ...] [--quick] [--json FILE] [--baseline FILE]

Variants of a case take turns in one process and are compared as ratios. FLOP/s are compared with the peak of matrix
products measured in the same process. Times of different machines don't compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from harness import (
    Result,
    Variant,
    compared,
    environment,
    interleaved,
    matmul_peak,
    report,
    save,
    timed_command,
    timed_lines,
)
from train_step import RandomData

from microdit.common.errors import nearest
from microdit.config.device import choose_device
from microdit.config.schema import Config
from microdit.data.latents.training_data import BatchSampler
from microdit.diffusion import build_objective
from microdit.encoders.autoencoder import build_autoencoder
from microdit.model import DiT
from microdit.model.cost import network as cost
from microdit.model.presets import preset
from microdit.pipeline.cost import image_flops, text_tokens
from microdit.pipeline.generate import generate
from microdit.pipeline.inputs import build_accelerator, build_components
from microdit.training.feed.batches import BatchFeed, draw_batch
from microdit.training.memory import training_memory
from microdit.training.trainer import TrainingLoss, initial_state, optimizer_step

ARMS = (("none", 0.0), ("naive", 0.75), ("deferred", 0.75), ("maskdit", 0.75))
NETWORKS = {"demo": None, "Tiny/2": "DiT-Tiny/2", "XL/2": "MicroDiT_XL_2"}  # case -> architecture
CPU_BATCH = {"demo": 16, "Tiny/2": 4, "XL/2": 1}
ROWS = 256  # random images of the training benchmark
GPU_BATCH = {"demo": 256, "Tiny/2": 256, "XL/2": 64}


def random_rows(config: Config) -> RandomData:
    """Return random latents and captions of the configuration's sizes."""
    return RandomData(config.model, text_tokens(config), images=ROWS)


def with_arm(config: Config, method: str, ratio: float, batch: int) -> Config:
    """Return a configuration with a masking method and a batch size."""
    masking = dataclasses.replace(config.model.masking, method=method, ratio=ratio)
    model = dataclasses.replace(config.model, masking=masking)
    training = dataclasses.replace(config.training, batch_size=batch, accumulation=1)
    return dataclasses.replace(config, model=model, training=training)


def stepper(config: Config, accelerator: Accelerator) -> Callable[[], object]:
    """Return a function that runs one optimizer step on random data, batches drawn as in training."""
    state = initial_state(config, accelerator.device)
    denoiser = build_objective(config.diffusion, state.net, 0.5)
    loss: torch.nn.Module = TrainingLoss(denoiser, state.alignment, config.training)
    if config.training.compile is True:
        loss = torch.compile(loss)  # type: ignore[assignment]
    rows = random_rows(config)
    order = BatchSampler(len(rows), config.training.batch_size, 0)

    def draw(step: int) -> Any:
        return draw_batch(config, step, rows, order, state.net)

    batches = iter(BatchFeed(draw, range(10**9), accelerator.device))

    def step() -> None:
        optimizer_step(config, 1e-4, next(batches), loss, state, accelerator)
        state.ema.update(state.net)

    return step


def train(quick: bool, device: torch.device) -> list[Result]:
    """Time optimizer steps of every masking method at three sizes of network."""
    results = []
    for case, name in NETWORKS.items():
        if quick and case != "demo":
            continue
        config = Config.preset("demo")
        if name is not None:
            model = preset(name)
            config = dataclasses.replace(config, model=model)
        if device.type == "cuda":
            config = dataclasses.replace(config, training=dataclasses.replace(config.training, precision="bf16"))
        batch = (GPU_BATCH if device.type == "cuda" else CPU_BATCH)[case]
        if not fits(with_arm(config, "none", 0.0, batch), device):
            print(f"train {case}: does not fit the memory of this machine", file=sys.stderr)
            continue
        accelerator = build_accelerator(config)
        dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
        peak = matmul_peak(device, dtype)
        variants = []
        for method, ratio in ARMS:
            arm = with_arm(config, method, ratio, batch)
            flops = float(image_flops(arm)) * batch
            variants.append(Variant("train", case, f"{method} {ratio:.0%}", stepper(arm, accelerator), batch, flops))
        rounds = 3 if quick else 5 if case == "XL/2" else 15
        results += interleaved(variants, rounds, device, peak, warmup=1 if case == "XL/2" else 2)
    return results


def fits(config: Config, device: torch.device) -> bool:
    """Return whether all arms of a training benchmark fit the memory together."""
    import psutil

    memory = training_memory(config)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return len(ARMS) * memory.state + memory.total(config.training.batch_size) < 0.9 * free


def sample(quick: bool, device: torch.device) -> list[Result]:
    """Time the generation of images with the demo's sampler at several batch sizes."""
    config = Config.preset("demo")
    state = initial_state(config, device)
    denoiser = build_objective(config.diffusion, state.net, 0.5).eval()
    decoder = build_autoencoder(config.autoencoder, device)
    count = 16 if quick else 64
    y = torch.randn(count, text_tokens(config), config.model.caption_channels)

    def run(batch: int) -> Callable[[], object]:
        return lambda: generate(denoiser, decoder, y, config.sampler, 0, batch_size=batch)

    evaluations = 2 * (2 * config.sampler.steps - 1)  # Heun, with guidance
    flops = float(cost.forward_flops(config.model, text_tokens(config), masked=False)) * evaluations * count
    sizes = (64, 16, 8) if device.type == "cpu" else (64, 256)
    variants = [Variant("sample", "demo", f"batch {size}", run(size), count, flops) for size in sizes]
    return interleaved(variants, 2 if quick else 5, device, matmul_peak(device, torch.float32), warmup=1)


def evaluate(quick: bool, device: torch.device) -> list[Result]:
    """Time the scoring of generated images; features of real images come from the cache after the first call."""
    from microdit.evaluation.score import score

    config = Config.preset("demo")
    count = 32 if quick else 256
    with tempfile.TemporaryDirectory() as cache:
        settings = dataclasses.replace(config.evaluation, samples=count, reference_count=2 * count)
        data = build_components(dataclasses.replace(config, cache_dir=cache, evaluation=settings)).val_images
        items = [data[i % len(data)] for i in range(count)]
        images = np.stack([item.image for item in items])
        captions, labels = [item.caption for item in items], [item.label for item in items]
        call = lambda: score(images, captions, labels, data, settings, cache)  # noqa: E731
        call()
        return interleaved(
            [Variant("evaluate", "demo", "cached reference", call, count)], 2 if quick else 5, device, warmup=0
        )


def feed(quick: bool, device: torch.device) -> list[Result]:
    """Time the drawing of one batch on the host at the paper's sizes."""
    config = Config.preset("demo")
    config = dataclasses.replace(config, model=preset("DiT-Tiny/2"))
    batch = 64 if quick else 256
    config = with_arm(config, "deferred", 0.75, batch)
    rows, net = random_rows(config), DiT(config.model, seed=None)
    order = BatchSampler(len(rows), batch, 0)
    call = lambda: draw_batch(config, 0, rows, order, net)  # noqa: E731
    return interleaved([Variant("feed", "Tiny/2", f"batch {batch}", call, batch)], 3 if quick else 10, device)


def console(module: str, *words: str) -> list[str]:
    """Return the command that runs a module's `main`, as its console script does."""
    return [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *words]


def start_up(quick: bool, device: torch.device) -> list[Result]:
    """Time commands that train nothing, and the first lines of a launch."""
    commands = {
        "microdit --help": console("microdit.cli.main", "--help"),
        "microdit-sweep --help": console("sweeps.cli", "--help"),
        "microdit-report --help": console("analysis.cli", "--help"),
        "config": console("sweeps.cli", "config", "scale=demo"),
        "plan": console("sweeps.cli", "plan", "study=masking_ratio", "scale=demo", "measure=false"),
    }
    repeats = 1 if quick else 5
    results = [timed_command("start-up", name, command, repeats) for name, command in commands.items()]
    launch = console("sweeps.cli", "study=masking_ratio", "scale=smoke", "seeds=[0]", "workers=1")
    signs = {"launch: first line": "loading PyTorch", "launch: first trial": "/seed0"}
    return results + timed_lines("start-up", launch, signs, 1 if quick else 3)


def queue(quick: bool, device: torch.device) -> list[Result]:
    """Time one logged metric; `queue_overhead.py` measures whole trials."""
    from queue_overhead import metric_seconds

    def call() -> None:
        with tempfile.TemporaryDirectory() as folder:
            metric_seconds(Path(folder))

    return interleaved([Variant("queue", "5000 metrics", "sqlite", call, 5000)], 1 if quick else 3, device, warmup=0)


def reports(quick: bool, device: torch.device) -> list[Result]:
    """Time a report of a generated store; `report_scaling.py` measures its parts and memory."""
    from report_scaling import fill

    runs = 40 if quick else 300
    with tempfile.TemporaryDirectory() as folder:
        uri = fill(Path(folder), runs, 100, 10)
        command = console("analysis.cli", "masking_ratio", "scale=demo", f"tracking_uri={uri}", f"out={folder}/results")
        return [timed_command("report", f"{runs} runs", command, 1 if quick else 3)]


SUITES: dict[str, Callable[[bool, torch.device], list[Result]]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "feed": feed,
    "start-up": start_up,
    "queue": queue,
    "report": reports,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the suites, print their table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few repeats and small sizes")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--baseline", type=Path, help="compare with a JSON file of the same machine")
    options = parser.parse_args(words)
    for name in options.suites:
        if name not in SUITES:
            parser.error(f"there is no suite '{name}'; {nearest(name, SUITES)}")
    device = choose_device(Config.preset("demo"))
    torch.set_num_threads(1)
    results: list[Result] = []
    for name in options.suites or SUITES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results += SUITES[name](options.quick, device)
    facts = environment(device)
    print(f"{facts['device']}, {facts['cpu']}, {facts['threads']} thread(s), {facts['versions']}\n\n{report(results)}")
    if options.baseline:
        print(f"\n{compared(results, options.baseline)}")
    if options.json:
        save(options.json, facts, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
