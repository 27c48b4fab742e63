"""Provide the training objective, noise levels, guidance and samplers.

Names are imported when they are first used, so that the settings can be read without loading PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from microdit.diffusion.config import DiffusionConfig, GuidanceInterval, SamplerConfig
    from microdit.diffusion.edm import EDM, build_objective
    from microdit.diffusion.guidance import guided
    from microdit.diffusion.noise_distribution import draw_sigma, quantile_sigma
    from microdit.diffusion.noise_schedules import sigma_steps
    from microdit.diffusion.objective import Objective
    from microdit.diffusion.samplers import StepCallback, sample

PUBLIC = {
    "EDM": "edm",
    "DiffusionConfig": "config",
    "GuidanceInterval": "config",
    "Objective": "objective",
    "SamplerConfig": "config",
    "StepCallback": "samplers",
    "build_objective": "edm",
    "draw_sigma": "noise_distribution",
    "guided": "guidance",
    "quantile_sigma": "noise_distribution",
    "sample": "samplers",
    "sigma_steps": "noise_schedules",
}

__all__ = [
    "EDM",
    "DiffusionConfig",
    "GuidanceInterval",
    "Objective",
    "SamplerConfig",
    "StepCallback",
    "build_objective",
    "draw_sigma",
    "guided",
    "quantile_sigma",
    "sample",
    "sigma_steps",
]

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
