"""Settings of the optimiser, the learning-rate schedule and the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from microdit.alignment.config import AlignmentConfig
from microdit.common.errors import ConfigError
from microdit.common.limits import check_limits
from microdit.diffusion.edm import DiffusionConfig
from microdit.encoders.text import TextConfig
from microdit.evaluation.config import EvalConfig
from microdit.model.config import DiTConfig


@dataclass(frozen=True)
class MuonConfig:
    """What Muon has besides the settings that it shares with AdamW; other optimisers ignore it."""

    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5  # Newton-Schulz iterations of an update

    def __post_init__(self) -> None:
        check_limits("optimizer.muon", self, momentum=1)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"'optimizer.muon.momentum' is {self.momentum}; it must lie in [0, 1)")
        if not 1 <= self.ns_steps < 100:
            raise ConfigError(f"'optimizer.muon.ns_steps' is {self.ns_steps}; it must lie in [1, 99]")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101), or another that shares its rate, decay and groups."""

    type: str = "adamw"  # adamw | muon | dotted path of a callable (net, OptimizerConfig) -> Optimizer
    lr: float = 1.6e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    no_decay: tuple[Literal["embedders", "norms", "biases"], ...] = ()  # parameter groups that weight decay spares
    muon: MuonConfig = MuonConfig()

    def __post_init__(self) -> None:
        check_limits("optimizer", self, lr=1e38, weight_decay=1e6, eps=1e3)
        if self.lr <= 0:
            raise ConfigError(f"'optimizer.lr' is {self.lr}; it must be above 0")
        if self.weight_decay < 0:
            raise ConfigError(f"'optimizer.weight_decay' is {self.weight_decay}; it must be at least 0")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"'optimizer.{key}' is {getattr(self, key)}; it must lie in [0, 1)")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over steps: linear warmup, then constant, or a half cosine down to `final_ratio` of the peak."""

    type: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ConfigError(f"'schedule.warmup_steps' is {self.warmup_steps}; it must be at least 0")
        if not 0 <= self.final_ratio <= 1:
            raise ConfigError(f"'schedule.final_ratio' is {self.final_ratio}; it must lie in [0, 1]")


@dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average of the weights; `decay` 0 means none, and the last weights are evaluated.

    `start_step` counts from the beginning. A negative one counts back from the end: the paper's "0.995 over the last
    10K steps" is `decay: 0.995, start_step: -10000`.
    """

    decay: float = 0.995
    start_step: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"'training.ema.decay' is {self.decay}; it must lie in [0, 1)")

    def first_step(self, steps: int) -> int:
        """The step (0-based) at which averaging begins in a run of `steps` steps."""
        return self.start_step if self.start_step >= 0 else max(steps + self.start_step, 0)


@dataclass(frozen=True)
class TrainingConfig:
    """The loop: how long, how much at a time, in which precision, and what it leaves behind."""

    steps: int
    batch_size: int  # images per optimiser step, over all processes and accumulation
    init: str | None = None  # weights to start from: a run's folder, an imported one, or a .safetensors file
    init_optimizer: bool = False  # start from that run's optimizer state, too; its last checkpoint has it
    accumulation: int = 1  # micro-batches per optimiser step
    precision: Literal["fp32", "bf16"] = "fp32"
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes: whole networks, or weights shared out
    clip: float = 1.0  # maximal gradient norm; 0 turns clipping off
    caption_dropout: float = 0.1
    unmasked_tail: float = 0.0  # share of the steps, at the end, that train on all patches
    ema: EmaConfig = EmaConfig()
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1  # CPU threads of one process
    log_every: int = 20
    val_every: int = 0  # 0: only at the end
    val_images: int = 256
    sample_every: int = 0  # 0: only at the end
    sample_count: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 1

    def __post_init__(self) -> None:
        check_limits(
            "training",
            self,
            steps=10**9,
            batch_size=1 << 20,
            accumulation=1 << 20,
            threads=4096,
            val_images=10**8,
            sample_count=10**5,
            clip=1e12,
        )
        for key in ("steps", "batch_size", "accumulation", "threads", "log_every", "val_images", "keep_checkpoints"):
            if getattr(self, key) < 1:
                raise ConfigError(f"'training.{key}' is {getattr(self, key)}; it must be at least 1")
        for key in ("val_every", "sample_every", "checkpoint_every", "sample_count", "clip"):
            if getattr(self, key) < 0:
                raise ConfigError(f"'training.{key}' is {getattr(self, key)}; it must be at least 0")
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"'training.batch_size' ({self.batch_size}) must be a multiple of 'training.accumulation' "
                f"({self.accumulation})"
            )
        if self.init_optimizer and self.init is None:
            raise ConfigError(
                "'training.init_optimizer' is true, but 'training.init' is null; name the run to start from"
            )
        for key in ("caption_dropout", "unmasked_tail"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"'training.{key}' is {getattr(self, key)}; it must lie in [0, 1]")

        if self.parallel == "fsdp" and self.compile:
            raise ConfigError(
                "'training.parallel' is fsdp, which doesn't go with 'training.compile' here; set it to false"
            )

    @property
    def masked_steps(self) -> int:
        """Steps before the unmasked tail."""
        return self.steps - round(self.unmasked_tail * self.steps)


class Recipe(Protocol):
    """The settings of a run that training reads; `microdit.config.schema.Config` has them."""

    @property
    def seed(self) -> int: ...

    @property
    def output_dir(self) -> str: ...

    @property
    def text(self) -> TextConfig: ...

    @property
    def model(self) -> DiTConfig: ...

    @property
    def diffusion(self) -> DiffusionConfig: ...

    @property
    def alignment(self) -> AlignmentConfig: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...

    @property
    def schedule(self) -> ScheduleConfig: ...

    @property
    def training(self) -> TrainingConfig: ...

    @property
    def evaluation(self) -> EvalConfig: ...
