"""Provide the training objective, noise levels, guidance and samplers.

Names are imported when they are first used, so that the settings can be read without loading PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from microdit.diffusion.config import DiffusionConfig as DiffusionConfig
    from microdit.diffusion.config import GuidanceInterval as GuidanceInterval
    from microdit.diffusion.config import SamplerConfig as SamplerConfig
    from microdit.diffusion.edm import EDM as EDM
    from microdit.diffusion.edm import build_objective as build_objective
    from microdit.diffusion.guidance import guided as guided
    from microdit.diffusion.noise_distribution import draw_sigma as draw_sigma
    from microdit.diffusion.noise_distribution import quantile_sigma as quantile_sigma
    from microdit.diffusion.noise_schedules import sigma_steps as sigma_steps
    from microdit.diffusion.objective import Objective as Objective
    from microdit.diffusion.samplers import StepCallback as StepCallback
    from microdit.diffusion.samplers import sample as sample

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

__all__ = list(PUBLIC)

if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)
