"""Define the configuration of a whole run: the root of frozen dataclasses.

Every component declares its own dataclass; this file gathers them and checks what concerns several.
`experiments/base.yaml` shows every key with a comment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml

from microdit.alignment import registry as alignment
from microdit.alignment.config import AlignmentConfig
from microdit.common.errors import ConfigError
from microdit.common.files.atomic import write_text
from microdit.common.limits import Range, check_path, check_settings
from microdit.common.parsing import check_finite, parse, read_yaml, to_mapping
from microdit.common.registry import import_plugins
from microdit.config.automatic import resolve_accumulation, resolve_automatic
from microdit.config.presets import apply_preset
from microdit.data.config import DataConfig
from microdit.diffusion.config import DiffusionConfig, SamplerConfig
from microdit.diffusion.registry import NOISE_DISTRIBUTIONS, NOISE_SCHEDULES, OBJECTIVES, SAMPLERS
from microdit.encoders.config import TEXT_ENCODERS, AutoencoderConfig, TextConfig
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.extensions import FEATURE_NETWORKS, METRIC_FUNCTIONS
from microdit.model.config import DiTConfig
from microdit.model.cost.memory import check_footprint
from microdit.model.validate import check_model
from microdit.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from microdit.training.optim.lr_schedule import LR_SCHEDULES
from microdit.training.optim.registry import OPTIMIZERS

PATHS = (
    "name",
    "output_dir",
    "cache_dir",
    "data.path",
    "data.originals",
    "autoencoder.path",
    "text.path",
    "training.init",
    "evaluation.prompts",
    "evaluation.clip",
    "evaluation.feature_weights",
    "alignment.weights",
)


@dataclass(frozen=True)
class CostConfig:
    """Price of an hour of the machine, for `cost/usd`; 0 if it doesn't count."""

    usd_per_hour: Annotated[float, Range(0, 1e9)] = 0.0

    def __post_init__(self) -> None:
        check_settings("cost", self)


@dataclass(frozen=True)
class Config:
    """The whole recipe of one run; see `experiments/base.yaml` for each key's meaning.

    The defaults are those of `experiments/base.yaml` before a scale is applied. `Config.preset("demo")` gives a recipe
    that a laptop trains in minutes.
    """

    name: str = "run"
    seed: int = 0
    output_dir: str = "runs/run"
    cache_dir: str = "~/.cache/microdit"
    plugins: tuple[str, ...] = ()
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: DiTConfig = field(default_factory=DiTConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    @classmethod
    def preset(cls, name: str = "demo", overrides: Sequence[str] = ()) -> Config:
        """Return a named recipe with some settings changed.

            Config.preset("demo", ["training.steps=200", "schedule.warmup_steps=20", "training.ema.start_step=100"])

        Warm-up and EMA are counted in steps: a shorter training needs shorter ones, and an error names them.
        `microdit-sweep train scale=NAME` trains the same recipe.

        Args:
            name: smoke (seconds), demo (minutes on a CPU), gpu (about an hour per study) or paper.
            overrides: `key=value` words with dotted keys, such as "training.steps=20"; later ones win. Sizes of the
                network that aren't set follow the data and the encoders.

        Raises:
            ConfigError: if the name or a key is unknown, or a value is missing or impossible.
        """
        values = to_mapping(cls())
        apply_preset(values, name, overrides)
        return config_from_mapping(values, f"preset '{name}'")

    def __post_init__(self) -> None:
        check_finite(self)
        for key in PATHS:
            value: Any = self
            for name in key.split("."):
                value = getattr(value, name)
            check_path(key, value)
        check_footprint(self.model, self.data.resolution, self.training.batch_size)
        import_plugins(self.plugins)
        self._check_names()
        check_model(self.model)
        alignment.check_names(self.alignment)
        self.alignment.block_of(self.model.depth)
        if self.training.parallel == "fsdp" and self.optimizer.type == "muon":
            raise ConfigError(
                "'optimizer.type' is muon, which needs whole matrices: 'training.parallel' must be ddp, not fsdp"
            )
        self._check_steps()
        self._check_guidance()
        resolved = resolve_automatic(self.training, self.model, self.text)
        object.__setattr__(self, "training", resolved)  # the dataclass is frozen
        object.__setattr__(self, "training", resolve_accumulation(self))  # reads the precision

    def _check_names(self) -> None:
        """Raise ConfigError for a name that no implementation has."""
        OPTIMIZERS.check_importable(self.optimizer.type)
        LR_SCHEDULES.check_importable(self.schedule.type)
        OBJECTIVES.check_importable(self.diffusion.objective)
        NOISE_DISTRIBUTIONS.check_importable(self.diffusion.distribution)
        if self.text.encoder is not None:
            TEXT_ENCODERS.check_importable(self.text.encoder)
        for metric in self.evaluation.metrics:
            METRIC_FUNCTIONS.check_importable(metric)
        FEATURE_NETWORKS.check_importable(self.evaluation.feature_net)
        SAMPLERS.check_importable(self.sampler.type)
        NOISE_SCHEDULES.check_importable(self.sampler.schedule)

    def _check_steps(self) -> None:
        """Raise ConfigError, with the overrides that fix it, if the training is too short for its parts."""
        steps, warmup, ema = self.training.steps, self.schedule.warmup_steps, self.training.ema
        troubles, fixes = [], []
        if warmup > steps:
            troubles.append(f"'schedule.warmup_steps' is {warmup}: the learning rate would never reach its peak")
            fixes.append(f"schedule.warmup_steps={steps}")
        if ema.decay and ema.start_step >= steps:
            troubles.append(f"'training.ema.start_step' is {ema.start_step}: the average would never start")
            fixes.append(f"training.ema.start_step={steps - 1}")
        if troubles:
            raise ConfigError(
                f"'training.steps' is {steps}, but {', and '.join(troubles)}; also set {' and '.join(fixes)} (or less)"
            )

    def _check_guidance(self) -> None:
        of_scores = self.evaluation.guidance
        guided = self.sampler.guidance != 1 or (of_scores is not None and of_scores != 1)
        if not guided and not self.sampler.guidance_interval.everywhere:
            raise ConfigError(
                "'sampler.guidance_interval' is set, but 'sampler.guidance' is 1: there is no guidance to limit"
            )
        if self.sampler.guidance_by == "caption":
            return
        if not guided:
            raise ConfigError(f"'sampler.guidance_by' is {self.sampler.guidance_by}, but 'sampler.guidance' is 1")
        if not self.model.masking.route.path_drop:
            raise ConfigError(
                f"'sampler.guidance_by' is {self.sampler.guidance_by}, but 'model.masking.route.path_drop' is 0: the "
                "network was not trained without its middle blocks; train method sprint with path_drop 0.1, or set "
                "'sampler.guidance_by' to caption"
            )


def config_from_mapping(values: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a resolved mapping, after importing its plugins.

    Names that the plugins register are valid settings.

    Args:
        values: nested settings, complete, by key.
        source: file or command for messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: if a setting is wrong; names `source` and the key.
    """
    plugins = values.get("plugins") if isinstance(values, Mapping) else None
    if isinstance(plugins, (list, tuple)) and all(isinstance(name, str) for name in plugins):
        try:
            import_plugins(plugins)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
    return parse(Config, values, source)


def load_config(path: Path | str) -> Config:
    """Read a complete config.yaml, such as every run stores.

    Returns:
        The configuration.

    Raises:
        ConfigError: if the file is missing or a setting is wrong; names the file and the key.
    """
    return config_from_mapping(read_yaml(path), str(path))


def save_config(config: Config, path: Path | str) -> None:
    """Write a config.yaml that `load_config` and `microdit train` read.

    Args:
        config: the configuration.
        path: the file, which is replaced; its folder is created if missing.
    """
    write_text(path, yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
