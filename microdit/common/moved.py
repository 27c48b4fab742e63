"""Map former locations of public modules and names to the present ones.

Users' YAML and Python files may still contain the former ones. Dotted class paths in YAML are translated. Imports in
users' modules are not, but the error names the present location.
"""

from __future__ import annotations

import re

# Former module -> present module.
MOVED_MODULES = {
    "microdit.alignment.encoders": "microdit.alignment.patch_encoders",
    "microdit.alignment.targets": "microdit.alignment.feature_cache",
    "microdit.budget": "microdit.pipeline.cost",
    "microdit.components": "microdit.pipeline.inputs",
    "microdit.config": "microdit.config.schema",
    "microdit.config_io": "microdit.common.parsing",
    "microdit.data.base": "microdit.data.dataset",
    "microdit.data.emoji": "microdit.data.emoji.dataset",
    "microdit.data.encoded": "microdit.data.latents.training_data",
    "microdit.data.folder": "microdit.data.image_folder.dataset",
    "microdit.data.image_files": "microdit.data.images.reader",
    "microdit.data.latents": "microdit.data.latents.dataset",
    "microdit.encoders.clip_text": "microdit.encoders.open_clip_text",
    "microdit.encoders.scoring": "microdit.evaluation.clip",
    "microdit.errors": "microdit.common.errors",
    "microdit.evaluation.distances": "microdit.evaluation.fidelity",
    "microdit.evaluation.features": "microdit.evaluation.feature_extractors",
    "microdit.evaluation.networks": "microdit.evaluation.feature_networks",
    "microdit.evaluation.scores": "microdit.evaluation.score",
    "microdit.evaluation.weights": "microdit.encoders.pretrained_weights",
    "microdit.files": "microdit.common.files.atomic",
    "microdit.finetune": "microdit.pipeline.finetune",
    "microdit.finish": "microdit.pipeline.evaluate",
    "microdit.imported": "microdit.pipeline.import_released",
    "microdit.model.attention": "microdit.model.layers.attention",
    "microdit.model.blocks": "microdit.model.layers.blocks",
    "microdit.model.captions": "microdit.model.conditioning",
    "microdit.model.cost": "microdit.model.cost.network",
    "microdit.model.counting": "microdit.model.cost.flops",
    "microdit.model.embedders": "microdit.model.layers.embeddings",
    "microdit.model.feed_forward": "microdit.model.layers.feed_forward",
    "microdit.model.mask_plan": "microdit.model.masking.patch_mask",
    "microdit.model.maskdit": "microdit.model.masking.maskdit",
    "microdit.model.masking": "microdit.model.masking.base",
    "microdit.model.methods": "microdit.model.masking.registry",
    "microdit.model.mixer": "microdit.model.layers.patch_mixer",
    "microdit.model.moe": "microdit.model.layers.moe",
    "microdit.model.released": "microdit.model.checkpoint_import",
    "microdit.model.routing": "microdit.model.masking.tread",
    "microdit.model.widths": "microdit.model.width_schedules",
    "microdit.processes": "microdit.common.process.distributed",
    "microdit.prompts": "microdit.pipeline.prompts",
    "microdit.rng": "microdit.common.rng",
    "microdit.roles": "microdit.common.registry",
    "microdit.run": "microdit.pipeline.train_and_evaluate",
    "microdit.sampling": "microdit.pipeline.generate",
    "microdit.sizes": "microdit.config.sizes",
    "microdit.trained": "microdit.pipeline.pretrained",
    "microdit.training.initial": "microdit.training.init_weights",
    "microdit.training.loop": "microdit.training.trainer",
    "microdit.training.meter": "microdit.training.metrics",
    "microdit.training.muon": "microdit.training.optim.muon",
    "microdit.training.optim": "microdit.training.optim.optimizers",
    "microdit.training.recorder": "microdit.training.logger",
    "microdit.training.stop": "microdit.training.graceful_stop",
}

# Former name -> present name, if the name changed, or its module did not move with the rest.
MOVED_NAMES = {
    "microdit.components.Components": "microdit.pipeline.inputs.RunInputs",
    "microdit.config_io.Settings": "microdit.common.parsing.FrozenOptions",
    "microdit.config.trial_key": "microdit.config.identity.trial_key",
    "microdit.data.base.DataConfig": "microdit.data.config.DataConfig",
    "microdit.data.base.DATASETS": "microdit.data.registry.DATASETS",
    "microdit.data.base.Item": "microdit.data.dataset.Sample",
    "microdit.data.base.build_dataset": "microdit.data.registry.build_dataset",
    "microdit.data.encoded.DataOrder": "microdit.data.latents.training_data.BatchSampler",
    "microdit.diffusion.edm.Denoiser": "microdit.diffusion.edm.EDM",
    "microdit.diffusion.edm.DiffusionConfig": "microdit.diffusion.config.DiffusionConfig",
    "microdit.diffusion.samplers.guided": "microdit.diffusion.guidance.guided",
    "microdit.evaluation.weights.Keys": "microdit.encoders.pretrained_weights.SettingNames",
    "microdit.model.captions.as_stored": "microdit.model.conditioning.round_to_half",
    "microdit.model.captions.beside_null": "microdit.model.conditioning.append_null_captions",
    "microdit.model.captions.dropped": "microdit.model.conditioning.drop_captions",
    "microdit.model.captions.over_tokens": "microdit.model.conditioning.map_tokens",
    "microdit.model.captions.parts": "microdit.model.conditioning.unpack",
    "microdit.model.captions.settled": "microdit.model.conditioning.replace_empty_captions",
    "microdit.model.embedders.Projection": "microdit.model.layers.embeddings.CaptionMLP",
    "microdit.model.feed_forward.FeedForwardConfig": "microdit.model.config.FeedForwardConfig",
    "microdit.model.init.initialise": "microdit.model.init.initialize",
    "microdit.model.mask_plan.MaskPlan": "microdit.model.masking.patch_mask.PatchMask",
    "microdit.model.mask_plan.plan_from_keep": "microdit.model.masking.patch_mask.mask_from_keep",
    "microdit.model.mask_plan.random_plan": "microdit.model.masking.patch_mask.random_mask",
    "microdit.model.masking.DecoderConfig": "microdit.model.config.DecoderConfig",
    "microdit.model.masking.Denoised": "microdit.model.masking.base.MaskingLossInputs",
    "microdit.model.masking.MaskingConfig": "microdit.model.config.MaskingConfig",
    "microdit.model.masking.RouteConfig": "microdit.model.config.RouteConfig",
    "microdit.model.masking.keep": "microdit.model.masking.base.gather_kept",
    "microdit.model.masking.spread": "microdit.model.masking.base.scatter_tokens",
    "microdit.model.methods.MASKINGS": "microdit.model.masking.registry.MASKING_METHODS",
    "microdit.model.mixer.MixerConfig": "microdit.model.config.MixerConfig",
    "microdit.model.moe.ExpertsConfig": "microdit.model.config.ExpertsConfig",
    "microdit.model.routing.SparseDenseFusion": "microdit.model.masking.sprint.SparseDenseFusion",
    "microdit.roles.allow_plugins": "microdit.common.registry.import_plugins",
    "microdit.trained.Trained": "microdit.pipeline.pretrained.Pipeline",
    "microdit.training.optim.Joined": "microdit.training.optim.optimizers.ChainedOptimizer",
    "microdit.training.optim.learning_rate": "microdit.training.optim.lr_schedule.learning_rate",
    "microdit.training.recorder.NullRecorder": "microdit.pipeline.run_logger.NullLogger",
    "microdit.training.recorder.Recorder": "microdit.pipeline.run_logger.RunLogger",
}


def present_path(path: str) -> str | None:
    """Return the present location of a moved module or name, or None."""
    if path in MOVED_NAMES:
        return MOVED_NAMES[path]
    module, _, name = path.rpartition(".")
    for former, present in MOVED_MODULES.items():
        if module == present and f"{former}.{name}" in MOVED_NAMES:  # the new module with the old name
            return MOVED_NAMES[f"{former}.{name}"]
    if module in MOVED_MODULES:
        return f"{MOVED_MODULES[module]}.{name}"
    return MOVED_MODULES.get(path)


def import_hint(error: ImportError) -> str:
    """Return the end of a message that names the present location.

    Args:
        error: raised by an import of a module or name.

    Returns:
        "" if nothing of that name was moved.
    """
    wanted = error.name or ""
    name = re.match(r"cannot import name '(\w+)'", str(error))
    if name:
        wanted = f"{wanted}.{name[1]}"
    present = present_path(wanted)
    return f"; it was moved, write {present}" if present else ""
