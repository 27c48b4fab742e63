"""Train, sample and score micro-budget diffusion transformers.

    import microdit as md

    result = md.train(md.Config.preset("smoke"))
    images = result.pipeline(["a cat"], num_samples=4, seed=0)

Names are imported when they are first used, so `import microdit` is quick and doesn't load PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdit.common.registry import lazy_attributes

if TYPE_CHECKING:
    from microdit.alignment.patch_encoders import register_patch_encoder as register_patch_encoder
    from microdit.common.errors import CheckpointError as CheckpointError
    from microdit.common.errors import ConfigError as ConfigError
    from microdit.common.errors import DataError as DataError
    from microdit.common.errors import DivergenceError as DivergenceError
    from microdit.common.errors import MicroditError as MicroditError
    from microdit.config.identity import trial_key as trial_key
    from microdit.config.schema import Config as Config
    from microdit.config.schema import load_config as load_config
    from microdit.config.schema import save_config as save_config
    from microdit.data.dataset import CaptionedImages as CaptionedImages
    from microdit.data.dataset import Sample as Sample
    from microdit.data.in_memory import ImageCaptionDataset as ImageCaptionDataset
    from microdit.data.registry import build_dataset as build_dataset
    from microdit.data.registry import register_dataset as register_dataset
    from microdit.diffusion.edm import register_objective as register_objective
    from microdit.diffusion.noise_distribution import register_noise_distribution as register_noise_distribution
    from microdit.diffusion.noise_schedules import register_noise_schedule as register_noise_schedule
    from microdit.diffusion.objective import Objective as Objective
    from microdit.diffusion.samplers import SamplerConfig as SamplerConfig
    from microdit.diffusion.samplers import register_sampler as register_sampler
    from microdit.encoders.text import register_text_encoder as register_text_encoder
    from microdit.evaluation.config import EvalConfig as EvalConfig
    from microdit.evaluation.extensions import register_feature_network as register_feature_network
    from microdit.evaluation.extensions import register_metric as register_metric
    from microdit.model.config import DiTConfig as DiTConfig
    from microdit.model.dit import DiT as DiT
    from microdit.model.layers.feed_forward import register_feed_forward as register_feed_forward
    from microdit.model.layers.patch_mixer import register_mixer as register_mixer
    from microdit.model.masking.base import Masking as Masking
    from microdit.model.masking.patch_mask import PatchMask as PatchMask
    from microdit.model.masking.registry import register_masking as register_masking
    from microdit.model.presets import list_presets as list_presets
    from microdit.model.width_schedules import register_width_schedule as register_width_schedule
    from microdit.pipeline.evaluate import evaluate as evaluate
    from microdit.pipeline.pretrained import Pipeline as Pipeline
    from microdit.pipeline.run_logger import NullLogger as NullLogger
    from microdit.pipeline.train import TrainingResult as TrainingResult
    from microdit.pipeline.train import train as train
    from microdit.training.optim.lr_schedule import register_lr_schedule as register_lr_schedule
    from microdit.training.optim.optimizers import register_optimizer as register_optimizer

# Public names and their modules; the block above gives them to type checkers, and a test keeps both equal.
PUBLIC = {
    "CaptionedImages": "data.dataset",
    "CheckpointError": "common.errors",
    "Config": "config.schema",
    "ConfigError": "common.errors",
    "DataError": "common.errors",
    "DiT": "model.dit",
    "DiTConfig": "model.config",
    "DivergenceError": "common.errors",
    "EvalConfig": "evaluation.config",
    "ImageCaptionDataset": "data.in_memory",
    "Masking": "model.masking.base",
    "MicroditError": "common.errors",
    "NullLogger": "pipeline.run_logger",
    "Objective": "diffusion.objective",
    "PatchMask": "model.masking.patch_mask",
    "Pipeline": "pipeline.pretrained",
    "Sample": "data.dataset",
    "SamplerConfig": "diffusion.samplers",
    "TrainingResult": "pipeline.train",
    "build_dataset": "data.registry",
    "evaluate": "pipeline.evaluate",
    "list_presets": "model.presets",
    "load_config": "config.schema",
    "register_dataset": "data.registry",
    "register_feature_network": "evaluation.extensions",
    "register_feed_forward": "model.layers.feed_forward",
    "register_lr_schedule": "training.optim.lr_schedule",
    "register_masking": "model.masking.registry",
    "register_metric": "evaluation.extensions",
    "register_mixer": "model.layers.patch_mixer",
    "register_noise_distribution": "diffusion.noise_distribution",
    "register_noise_schedule": "diffusion.noise_schedules",
    "register_objective": "diffusion.edm",
    "register_optimizer": "training.optim.optimizers",
    "register_patch_encoder": "alignment.patch_encoders",
    "register_sampler": "diffusion.samplers",
    "register_text_encoder": "encoders.text",
    "register_width_schedule": "model.width_schedules",
    "save_config": "config.schema",
    "train": "pipeline.train",
    "trial_key": "config.identity",
}

__all__ = list(PUBLIC)


if not TYPE_CHECKING:  # a type checker would accept any name
    __getattr__ = lazy_attributes(__name__, PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
