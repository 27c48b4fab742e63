"""The learning rate of each step."""

from __future__ import annotations

import math

from microdit.training.config import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, config: ScheduleConfig) -> float:
    """The rate of 0-based `step` in a run of `steps`: linear warmup to `peak`, then constant or cosine.

    The last step of a cosine runs at `final_ratio * peak` exactly.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.type == "constant":
        return peak
    span = max(steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    return peak * (config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress)))
