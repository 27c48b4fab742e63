"""Settings of the optimizer, the learning-rate schedule and the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

from microdit.alignment.config import AlignmentConfig
from microdit.common.errors import ConfigError
from microdit.common.limits import Range, check_settings
from microdit.common.parsing import FrozenOptions
from microdit.diffusion.config import DiffusionConfig
from microdit.encoders.config import TextConfig
from microdit.evaluation.config import EvalConfig
from microdit.model.config import DiTConfig


@dataclass(frozen=True)
class MuonConfig:
    """Configure Muon, besides the settings that it shares with AdamW.

    Other optimizers ignore it.
    """

    momentum: Annotated[float, Range(0, below=1)] = 0.95
    nesterov: bool = True
    ns_steps: Annotated[int, Range(1, 99)] = 5  # Newton-Schulz iterations of an update

    def __post_init__(self) -> None:
        check_settings("optimizer.muon", self)


@dataclass(frozen=True)
class OptimizerConfig:
    """Configure AdamW (Loshchilov & Hutter, arXiv 1711.05101) or another optimizer.

    All use the same learning rate, weight decay and parameter groups.
    """

    type: str = "adamw"  # adamw | muon | dotted path of a callable (net, OptimizerConfig) -> Optimizer
    lr: Annotated[float, Range(above=0, most=1e38)] = 1.6e-4
    weight_decay: Annotated[float, Range(0, 1e6)] = 0.01
    beta1: Annotated[float, Range(0, below=1)] = 0.9
    beta2: Annotated[float, Range(0, below=1)] = 0.999
    eps: Annotated[float, Range(0, 1e3)] = 1e-8
    no_decay: tuple[Literal["embedders", "norms", "biases"], ...] = ()  # parameter groups without weight decay
    muon: MuonConfig = MuonConfig()
    options: FrozenOptions = field(default_factory=FrozenOptions)  # free keys for a function of the user's

    def __post_init__(self) -> None:
        check_settings("optimizer", self)


@dataclass(frozen=True)
class ScheduleConfig:
    """Configure the learning rate over steps: linear warmup, then a schedule."""

    type: str = "cosine"  # cosine (half of one, to `final_ratio` of the peak) | constant | dotted path of a function
    warmup_steps: Annotated[int, Range(0)] = 0
    final_ratio: Annotated[float, Range(0, 1)] = 0.0
    options: FrozenOptions = field(default_factory=FrozenOptions)  # free keys for a function of the user's

    def __post_init__(self) -> None:
        check_settings("schedule", self)


@dataclass(frozen=True)
class EmaConfig:
    """Configure the exponential moving average of the weights.

    With `decay` 0 there is none, and the last weights are evaluated.

    `start_step` counts from the beginning. A negative one counts back from the end: the paper's "0.995 over the last
    10K steps" is `decay: 0.995, start_step: -10000`.
    """

    decay: Annotated[float, Range(0, below=1)] = 0.995
    start_step: int = -10_000

    def __post_init__(self) -> None:
        check_settings("training.ema", self)

    def first_step(self, steps: int) -> int:
        """Return the 0-based step at which averaging begins.

        Args:
            steps: length of the run.
        """
        return self.start_step if self.start_step >= 0 else max(steps + self.start_step, 0)


@dataclass(frozen=True)
class TrainingConfig:
    """Configure the training loop."""

    steps: Annotated[int, Range(1, 10**9)] = 60_000
    batch_size: Annotated[int, Range(1, 1 << 20)] = 2048  # images per optimizer step, over all processes
    init: str | None = None  # weights to start from: a run's folder, an imported one, or a .safetensors file
    init_optimizer: bool = False  # start from that run's optimizer state, too; its last checkpoint has it
    # micro-batches per optimizer step; auto: the fewest that fit the GPU. `Config` replaces auto.
    accumulation: Annotated[int | Literal["auto"], Range(1, 1 << 20)] = 1
    activation_checkpointing: bool = False  # keep only the inputs of blocks, and run them again in the backward pass
    # auto: bf16 if the device is faster with it, else fp32. `Config` replaces auto before the run is identified.
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    residual: Literal["fp32", "bf16"] = "fp32"  # dtype of tokens between blocks and of norms, if autocast is bf16
    draws: Literal["host", "device"] = "host"  # where noise, dropout and masks are drawn; a GPU draws other numbers
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several processes: whole networks, or sharded weights
    clip: Annotated[float, Range(0, 1e12)] = 1.0  # maximal gradient norm; 0 turns clipping off
    caption_dropout: Annotated[float, Range(0, 1)] = 0.1
    unmasked_tail: Annotated[float, Range(0, 1)] = 0.0  # share of the steps, at the end, that train on all patches
    ema: EmaConfig = EmaConfig()
    compile: Literal["auto", False, True] = False  # torch.compile; auto: if the run is long enough to pay for it
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Range(1, 4096)] = 1  # CPU threads of one process
    log_every: Annotated[int, Range(1)] = 20
    val_every: Annotated[int, Range(0)] = 0  # 0: only at the end
    val_images: Annotated[int, Range(1, 10**8)] = 256
    sample_every: Annotated[int, Range(0)] = 0  # 0: only at the end
    sample_count: Annotated[int, Range(0, 10**5)] = 10
    checkpoint_every: Annotated[int, Range(0)] = 500
    keep_checkpoints: Annotated[int, Range(1)] = 1

    def __post_init__(self) -> None:
        check_settings("training", self)
        if self.accumulation != "auto" and self.batch_size % self.accumulation:
            raise ConfigError(
                f"'training.batch_size' ({self.batch_size}) must be a multiple of 'training.accumulation' "
                f"({self.accumulation})"
            )
        if self.residual == "bf16" and self.precision == "fp32":
            raise ConfigError("'training.residual' is bf16, so 'training.precision' must be bf16, not fp32")
        if self.init_optimizer and self.init is None:
            raise ConfigError(
                "'training.init_optimizer' is true, but 'training.init' is null; name the run to start from"
            )
        if self.parallel == "fsdp" and self.compile is True:
            raise ConfigError(
                "'training.parallel' is fsdp, which does not work with 'training.compile'; set it to false"
            )

    @property
    def micro_batches(self) -> int:
        """Return the number of micro-batches per optimizer step."""
        assert self.accumulation != "auto", "Config replaces auto"
        return self.accumulation

    @property
    def masked_steps(self) -> int:
        """Return the number of steps before the unmasked tail."""
        return self.steps - round(self.unmasked_tail * self.steps)


class Recipe(Protocol):
    """Define the settings that training reads.

    `microdit.config.schema.Config` implements it.
    """

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
