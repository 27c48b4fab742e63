"""Objectives, noise distributions, noise schedules and samplers by name.

Importing this module doesn't load PyTorch.
"""

from __future__ import annotations

from typing import Any

from microdit.common.registry import Registry

# The modules of the roles export these with their types.
OBJECTIVES: Registry[Any] = Registry(
    "diffusion.objective", {"edm": "microdit.diffusion.edm.EDM"}, base="microdit.diffusion.objective.Objective"
)
NOISE_DISTRIBUTIONS: Registry[Any] = Registry(
    "diffusion.distribution",
    {"lognormal": "microdit.diffusion.noise_distribution.LogNormal"},
    base="microdit.diffusion.noise_distribution.NoiseDistribution",
)
NOISE_SCHEDULES: Registry[Any] = Registry("sampler.schedule", {"karras": "microdit.diffusion.noise_schedules.karras"})
SAMPLERS: Registry[Any] = Registry(
    "sampler.type",
    {"heun": "microdit.diffusion.samplers.sample_heun", "euler": "microdit.diffusion.samplers.sample_euler"},
)
