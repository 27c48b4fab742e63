"""Run the training loop; each step depends on (weights, seed, step) alone.

B images of the global batch. Its random numbers don't depend on how many processes or micro-batches share it. A process
draws and reads only its own images.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from microdit.alignment.loss import Alignment, build_alignment
from microdit.common.errors import CheckpointError
from microdit.common.process.progress_bar import Progress
from microdit.data.latents.training_data import BatchSampler, EncodedDataset
from microdit.diffusion import Objective, build_objective
from microdit.model import DiT, PatchMask
from microdit.model.conditioning import Captions
from microdit.training.checkpoint import Identity, TrainState, load_checkpoint, save_checkpoint
from microdit.training.config import Recipe, TrainingConfig
from microdit.training.feed.batches import Batch, BatchFeed, draw_batch
from microdit.training.feed.device_rows import device_rows
from microdit.training.fsdp import full_tensor, mesh_of, shard
from microdit.training.graceful_stop import GracefulStop
from microdit.training.init_weights import initial_sigma_data, load_initial
from microdit.training.logger import StepLogger
from microdit.training.metrics import StepMetrics
from microdit.training.optim.averaged_weights import AveragedWeights
from microdit.training.optim.init_optimizer import load_initial_optimizer
from microdit.training.optim.lr_schedule import learning_rate
from microdit.training.optim.optimizers import build_optimizer
from microdit.training.run_files import checkpoints
from microdit.training.validation import validate

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Sampling = Callable[[int, DiT], object]  # (finished steps, the network to sample from)


class TrainingLoss(nn.Module):
    """Compute the loss in a module's forward, as DistributedDataParallel requires.

    Build it only once per network, because it hooks into the aligned block.
    """

    def __init__(self, denoiser: Objective, alignment: Alignment, settings: TrainingConfig) -> None:
        super().__init__()
        denoiser.net.save_memory(settings.residual == "bf16", settings.activation_checkpointing)
        self.denoiser = denoiser
        self.alignment = alignment
        alignment.attach(denoiser.net)

    def forward(
        self, x: Tensor, y: Captions, sigma: Tensor, noise: Tensor, target: Tensor, plan: PatchMask | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimize, and the values to log.

        Args:
            x: clean latents (B, C, H, W).
            y: caption features (B, S, Y) and their mask.
            sigma: noise levels (B,).
            noise: unit normal (B, C, H, W).
            target: patch features to align with (B, T, E).
            plan: the patches to keep; None keeps all.

        Returns:
            The scalar loss, and detached scalars: the denoising loss and those of the alignment term.
        """
        denoising = self.denoiser.loss(x, y, sigma, noise, plan).mean()
        loss, readings = self.alignment(denoising, target, plan)
        return loss, {"train/loss": denoising.detach(), **readings}


def initial_state(config: Recipe, device: torch.device, mesh: DeviceMesh | None = None) -> TrainState:
    """Return the state of a run before its first step.

    Weights come from the seed or from `training.init`, the optimizer's state from there if `training.init_optimizer` is
    set.

    Args:
        config: settings of the run.
        device: of the weights.
        mesh: processes over which weights, average and optimizer state are sharded; None does not shard.
    """
    init = config.training.init
    net = DiT(config.model, seed=config.seed if init is None else None)
    if init is not None:
        load_initial(net, init)
    if mesh is None:
        net = net.to(device)
    ema = AveragedWeights(net, config.training.ema.decay)
    alignment = build_alignment(config.alignment, config.model, config.seed).to(device)
    if mesh is not None:  # the network is still on the CPU, and sharding moves it block by block
        for module in (net, ema.module, alignment):
            shard(module, mesh, half=config.training.precision == "bf16")
    optimizer = build_optimizer(nn.ModuleDict({"net": net, "alignment": alignment}), config.optimizer)
    if config.training.init_optimizer and init is not None:
        load_initial_optimizer(optimizer, init)
    return TrainState(net, alignment, ema, optimizer)


def sigma_data(config: Recipe, data: EncodedDataset) -> float:
    """Return sigma_data: the setting, else of the initial weights, else of the data.

    Args:
        config: settings of the run.
        data: training data.
    """
    if config.diffusion.sigma_data is not None:
        return config.diffusion.sigma_data
    return data.sigma_data if config.training.init is None else initial_sigma_data(config.training.init)


def train(
    config: Recipe,
    data: EncodedDataset,
    val: EncodedDataset,
    identity: Identity,
    logger: StepLogger,
    accelerator: Accelerator,
    on_step: Sampling | None = None,
    progress: bool = False,
    stop: GracefulStop | None = None,
) -> TrainState:
    """Train to `config.training.steps`, from the newest checkpoint if there is one.

    Checkpoints are in `config.output_dir`/checkpoints. Validates during training; the final validation is the caller's,
    since a run that is resumed after the last step needs it too.

    Args:
        config: settings of the run.
        data: training data.
        val: held-out data.
        identity: of the run; a checkpoint of another run is rejected.
        logger: receives metrics.
        accelerator: device, precision and processes.
        on_step: called every `training.sample_every` steps but the last, with the finished steps and the network to
            sample from.
        progress: whether the main process shows a progress bar.
        stop: the stop request to check after each step.

    Returns:
        The state after the last step.

    Raises:
        DivergenceError: at the first loss or gradient that is not finite.
        CheckpointError: if a checkpoint can't be resumed or written.
        KeyboardInterrupt: after the step in which any process was asked to stop, once a checkpoint is saved.
    """
    settings = config.training
    folder = Path(config.output_dir) / "checkpoints"
    sharded = settings.parallel == "fsdp" and accelerator.num_processes > 1
    state = initial_state(config, accelerator.device, mesh_of(accelerator) if sharded else None)
    for newest in checkpoints(folder)[-1:]:
        load_checkpoint(newest, state, identity)
    _check_same_step(state.step, accelerator, config.output_dir)
    denoiser = build_objective(config.diffusion, state.net, sigma_data(config, data))
    loss_module: nn.Module = TrainingLoss(denoiser, state.alignment, settings)
    if settings.compile:
        loss_module = torch.compile(loss_module)  # type: ignore[assignment]
    unused = _leaves_parameters_out(state.net, config)
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused, gradient_as_bucket_view=True)
    if not sharded:
        loss_module = accelerator.prepare_model(loss_module)
    order = BatchSampler(len(data), settings.batch_size, config.seed)
    own = _own_rows(settings.batch_size, accelerator)
    place = accelerator.device if settings.draws == "device" else torch.device("cpu")
    rows = device_rows(data, accelerator.device)

    def draw(step: int) -> Batch:
        return draw_batch(config, step, rows, order, state.net, own, place)

    meter = StepMetrics(settings.batch_size, state, accelerator.device)
    bar = Progress(settings.steps, state.step, progress and accelerator.is_main_process)
    asked = stop if stop is not None else GracefulStop()

    if on_step is not None and settings.sample_every and state.step == 0:
        with meter.paused():
            on_step(0, state.averaged)  # what training starts from
    steps = range(state.step, settings.steps)
    with asked.watched(), closing(iter(BatchFeed(draw, steps, accelerator.device))) as batches:
        for step, batch in zip(steps, batches, strict=True):
            rate = learning_rate(step, settings.steps, config.optimizer.lr, config.schedule)
            readings = optimizer_step(config, rate, batch, loss_module, state, accelerator)
            if settings.ema.decay and step >= settings.ema.first_step(settings.steps):
                state.ema.update(state.net)
            state.step = done = step + 1
            meter.add(done, readings)

            last = done == settings.steps
            if last or done % settings.log_every == 0:
                values = meter.read(accelerator, folder) | {"lr": rate}
                logger.metrics(done, values)
                bar.update(done, values["train/loss"], values["images_per_second"], meter.seconds_left(settings.steps))
            if not last and _due(done, settings.val_every):
                with meter.paused():
                    averaged = build_objective(config.diffusion, state.averaged, denoiser.sigma_data)
                    logger.metrics(done, validate(averaged, val, config))
            stopping = asked.agreed(accelerator, done)
            if last or stopping or _due(done, settings.checkpoint_every):
                meter.check(folder)
                with meter.paused():
                    logger.flush()
                state.seconds, state.interval = meter.seconds(), meter.interval(accelerator)
                save_checkpoint(folder, state, identity, settings.keep_checkpoints, accelerator.is_main_process)
            if on_step is not None and not last and _due(done, settings.sample_every):
                with meter.paused():
                    on_step(done, state.averaged)
            if stopping and not last:
                raise KeyboardInterrupt
    bar.close()
    return state


def optimizer_step(
    config: Recipe, rate: float, batch: Batch, loss_module: nn.Module, state: TrainState, accelerator: Accelerator
) -> dict[str, Tensor]:
    """Update the weights once, in place.

    Args:
        config: settings of the run.
        rate: learning rate.
        batch: this process's share of the global batch, on the device.
        loss_module: `TrainingLoss`, as the accelerator prepared it.
        state: weights and optimizer.
        accelerator: device, precision and processes.

    Returns:
        Scalars on the device: this process's means of the loss module's values, and `grad_norm`, the norm before
        clipping.
    """
    settings, device = config.training, accelerator.device
    share = len(batch.x) // settings.micro_batches
    means: dict[str, Tensor] = {}
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    for micro in range(settings.micro_batches):
        inputs = batch.rows(slice(micro * share, (micro + 1) * share)).arguments()
        final = micro == settings.micro_batches - 1
        with accelerator.no_sync(loss_module) if not final else torch.enable_grad():
            with accelerator.autocast():
                loss, readings = loss_module(*inputs)
            accelerator.backward(loss / settings.micro_batches)
        for name, value in readings.items():
            means[name] = means.get(name, torch.zeros((), device=device)) + value / settings.micro_batches
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(state.parameters(), settings.clip or float("inf")))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return means | {"grad_norm": norm}


def _own_rows(batch_size: int, accelerator: Accelerator) -> slice:
    """Return this process's rows of the global batch."""
    own = batch_size // accelerator.num_processes
    return slice(accelerator.process_index * own, (accelerator.process_index + 1) * own)


def _leaves_parameters_out(net: DiT, config: Recipe) -> bool:
    """Return whether a step on all patches may leave weights of the masking method unused."""
    unmasked = config.model.masking.ratio == 0 or config.training.masked_steps < config.training.steps
    return unmasked and any(True for _ in net.masking.parameters())


def _check_same_step(step: int, accelerator: Accelerator, output_dir: str) -> None:
    """Raise CheckpointError if processes found different checkpoints."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the processes of this run find different checkpoints (of steps {sorted(set(steps))}): 'output_dir' "
            f"({output_dir}) must be a folder that all machines share"
        )


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
