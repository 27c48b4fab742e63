"""Learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable

from microdit.common.registry import Registry
from microdit.training.config import ScheduleConfig

# (progress in [0, 1] from the end of warmup to the last step, settings) -> share of the peak learning rate
LearningRateSchedule = Callable[[float, ScheduleConfig], float]


def constant(progress: float, config: ScheduleConfig) -> float:
    """Return the peak's share of a constant schedule, 1.

    Args:
        progress: unused.
        config: unused.
    """
    return 1.0


def cosine(progress: float, config: ScheduleConfig) -> float:
    """Return half a cosine from 1 to `final_ratio`, which the last step has exactly.

    Args:
        progress: in [0, 1] from the end of warmup to the last step.
        config: settings of the schedule.
    """
    return config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


LR_SCHEDULES: Registry[LearningRateSchedule] = Registry("schedule.type", {"cosine": cosine, "constant": constant})
register_lr_schedule = LR_SCHEDULES.register


def learning_rate(step: int, steps: int, peak: float, config: ScheduleConfig) -> float:
    """Return the learning rate of a step: linear warmup, then the schedule.

    Args:
        step: counted from 0.
        steps: length of the run.
        peak: learning rate at the end of warmup.
        config: settings of the schedule.
    """
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    span = max(steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / span, 1.0)
    return peak * LR_SCHEDULES.resolve(config.type)(progress, config)
