"""Provide the training objective, noise levels, guidance and samplers."""

from microdit.diffusion.config import DiffusionConfig, GuidanceInterval, SamplerConfig
from microdit.diffusion.edm import EDM, build_objective
from microdit.diffusion.guidance import guided
from microdit.diffusion.noise_distribution import draw_sigma, quantile_sigma
from microdit.diffusion.noise_schedules import sigma_steps
from microdit.diffusion.objective import Objective
from microdit.diffusion.samplers import StepCallback, sample

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
