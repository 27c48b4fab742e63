"""Compare the training speed of masking methods, interleaved in one process.

python tests/benchmarks/masking_speed.py [--config config.yaml] [--steps 8]
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch

from microdit.common.rng import generator
from microdit.config.schema import load_config
from microdit.diffusion import EDM, DiffusionConfig, draw_sigma
from microdit.model import DiT, DiTConfig
from microdit.model.cost import network as cost
from microdit.pipeline.cost import text_tokens
from microdit.training.config import OptimizerConfig
from microdit.training.optim.optimizers import build_optimizer

ARMS = (("none", 0.0), ("naive", 0.5), ("deferred", 0.5), ("naive", 0.75), ("deferred", 0.75))
WARMUP = 2


def bench_masking(config: Path | None, steps: int = 8) -> str:
    """Return a table of images/s and GFLOPs for each masking method at the sizes of `config`.

    The arms take turns step by step, so that a load on the machine slows all of them alike; each arm's time is its
    median step.
    """
    if config is None:
        model, batch, tokens = DiTConfig(), 48, 32
    else:
        full = load_config(config)
        model, batch, tokens = full.model, full.training.batch_size, text_tokens(full)
        torch.set_num_threads(full.training.threads)
    arms = [_Arm(model, method, ratio, batch, tokens) for method, ratio in ARMS]
    for step in range(WARMUP + steps):
        for arm in arms:
            arm.step(step)
    base = arms[0].seconds()
    lines = [
        f"batch {batch}, {tokens} text tokens, {torch.get_num_threads()} thread(s), median of {steps} steps",
        f"{'arm':>14s} {'params':>12s} {'GFLOPs/image':>13s} {'images/s':>9s} {'speed':>7s} {'FLOPs':>7s}",
    ]
    for arm in arms:
        lines.append(
            f"{arm.name:>14s} {arm.params:12,d} {arm.flops / 1e9:13.3f} {batch / arm.seconds():9.1f} "
            f"{base / arm.seconds():6.2f}x {arm.flops / arms[0].flops:6.2f}x"
        )
    return "\n".join(lines)


class _Arm:
    def __init__(self, model: DiTConfig, method: str, ratio: float, batch: int, tokens: int) -> None:
        masking = dataclasses.replace(model.masking, method=method, ratio=ratio)
        config = dataclasses.replace(model, masking=masking)
        self.name = f"{method} {ratio:.0%}"
        self.params = cost.parameters(config)
        self.flops = cost.training_flops(config, tokens)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        net = DiT(config, seed=0).to(device)
        self._denoiser = EDM(net, 0.5)
        self._optimizer = build_optimizer(net, OptimizerConfig())
        draw = generator(0, "bench")
        shape = (batch, config.in_channels, config.input_size, config.input_size)
        self._x = torch.randn(shape, generator=draw).to(device)
        self._y = torch.randn((batch, tokens, config.caption_channels), generator=draw).to(device)
        self._times: list[float] = []

    def step(self, step: int) -> None:
        begin = time.perf_counter()
        batch, device = len(self._x), self._x.device
        sigma = draw_sigma(batch, DiffusionConfig(), generator(0, "sigma", step)).to(device)
        noise = torch.randn(self._x.shape, generator=generator(0, "noise", step)).to(device)
        plan = self._denoiser.net.mask_plan(batch, generator(0, "mask", step))
        plan = plan.to(device) if plan is not None else None
        self._denoiser.loss(self._x, self._y, sigma, noise, plan).mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= WARMUP:
            self._times.append(time.perf_counter() - begin)

    def seconds(self) -> float:
        return sorted(self._times)[len(self._times) // 2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the training speed of masking methods.")
    parser.add_argument("--config", type=Path, help="a complete configuration (default: the model's own defaults)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps per method (default 8)")
    options = parser.parse_args()
    print(bench_masking(options.config, options.steps))
