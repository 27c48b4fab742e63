"""EDM diffusion: the denoiser with its loss, and the samplers."""

from microdit.diffusion.edm import Denoiser, DiffusionConfig, draw_sigma, quantile_sigma
from microdit.diffusion.guidance import GuidanceInterval, guided
from microdit.diffusion.samplers import SamplerConfig, StepCallback, sample, sigma_steps

__all__ = [
    "Denoiser",
    "DiffusionConfig",
    "GuidanceInterval",
    "SamplerConfig",
    "StepCallback",
    "draw_sigma",
    "guided",
    "quantile_sigma",
    "sample",
    "sigma_steps",
]
