"""The training loop: one flat pass over steps, each a function of (weights, seed, step) alone.

B images of the global batch. Every random draw is made for the whole global batch on the CPU and then sliced, so the
numbers don't depend on how many processes or micro-batches share it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from microdit.config import Config, trial_key
from microdit.data.encoded import DataOrder, EncodedDataset
from microdit.diffusion import Denoiser, draw_sigma
from microdit.model import DiT, MaskPlan
from microdit.rng import generator
from microdit.training.checkpoint import TrainState, checkpoints, load_checkpoint, save_checkpoint
from microdit.training.meter import Meter
from microdit.training.optim import build_optimizer, learning_rate
from microdit.training.progress import Progress
from microdit.training.recorder import Recorder
from microdit.training.stop import StopRequest
from microdit.training.validation import validate

Sampling = Callable[[int, TrainState], object]  # (finished steps, state)


class DenoisingLoss(nn.Module):
    """The loss as a module's forward, so that DistributedDataParallel sees every backward pass."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, y: Tensor, sigma: Tensor, noise: Tensor, plan: MaskPlan | None) -> Tensor:
        return self.denoiser.loss(x, y, sigma, noise, plan).mean()


def initial_state(config: Config, device: torch.device) -> TrainState:
    """Fresh weights from the seed, on `device`."""
    net = DiT(config.model, seed=config.seed).to(device)
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.training.ema.decay))
    return TrainState(net, ema, build_optimizer(net, config.optimizer))


def train(
    config: Config,
    data: EncodedDataset,
    val: EncodedDataset,
    recorder: Recorder,
    accelerator: Accelerator,
    on_step: Sampling | None = None,
    progress: bool = False,
    stop: StopRequest | None = None,
) -> TrainState:
    """Trains to `config.training.steps`, going on from the newest checkpoint under `config.output_dir`.

    Validates on the way; the validation at the end is the caller's, because a run that resumes there needs it too.

    Raises DivergenceError at the first non-finite loss or gradient, and KeyboardInterrupt, with a checkpoint kept,
    after the step in which `stop` was asked.
    """
    settings, key = config.training, trial_key(config)
    folder = Path(config.output_dir) / "checkpoints"
    state = initial_state(config, accelerator.device)
    for newest in checkpoints(folder)[-1:]:
        load_checkpoint(newest, state, key)
    denoiser = Denoiser(state.net, config.diffusion.sigma_data or data.sigma_data)
    loss_module: nn.Module = DenoisingLoss(denoiser)
    if settings.compile:
        loss_module = torch.compile(loss_module)  # type: ignore[assignment]
    loss_module = accelerator.prepare_model(loss_module)
    order = DataOrder(len(data), settings.batch_size, config.seed)
    meter = Meter(settings.batch_size, state, accelerator.device)
    bar = Progress(settings.steps, state.step, progress and accelerator.is_main_process)
    asked = stop if stop is not None and accelerator.num_processes == 1 else StopRequest()  # of many, each stops alone

    if on_step is not None and settings.sample_every and state.step == 0:
        with meter.paused():
            on_step(0, state)  # what training starts from
    with asked.watched():
        for step in range(state.step, settings.steps):
            rate = learning_rate(step, settings.steps, config.optimizer.lr, config.schedule)
            loss, norm = optimiser_step(config, step, rate, data, order, loss_module, state, accelerator)
            if settings.ema.decay and step >= settings.ema.first_step(settings.steps):
                state.ema.update_parameters(state.net)
            state.step = done = step + 1
            meter.add(done, loss, norm)

            last = done == settings.steps
            if last or done % settings.log_every == 0:
                values = meter.read(accelerator, folder) | {"lr": rate}
                recorder.metrics(done, values)
                bar.update(done, values["train/loss"], values["images_per_second"], meter.seconds_left(settings.steps))
            if not last and _due(done, settings.val_every):
                with meter.paused():
                    recorder.metrics(done, validate(Denoiser(state.averaged, denoiser.sigma_data), val, config))
            if last or asked.requested or _due(done, settings.checkpoint_every):
                meter.check(folder)
                with meter.paused():
                    recorder.flush()
                state.seconds, state.interval = meter.seconds(), meter.interval(accelerator)
                if accelerator.is_main_process:
                    save_checkpoint(folder, state, key, settings.keep_checkpoints)
            if on_step is not None and not last and _due(done, settings.sample_every):
                with meter.paused():
                    on_step(done, state)
            if asked.requested and not last:
                raise KeyboardInterrupt
    bar.close()
    return state


def optimiser_step(
    config: Config,
    step: int,
    rate: float,
    data: EncodedDataset,
    order: DataOrder,
    loss_module: nn.Module,
    state: TrainState,
    accelerator: Accelerator,
) -> tuple[Tensor, Tensor]:
    """One update of `state.net` at 0-based `step`; returns this process' mean loss and the gradient norm."""
    settings, device = config.training, accelerator.device
    x, y, sigma, noise, plan = draw_batch(config, step, data, order, state.net)
    parts = accelerator.num_processes * settings.accumulation
    share = settings.batch_size // parts
    total = torch.zeros((), device=device)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    for micro in range(settings.accumulation):
        part = accelerator.process_index * settings.accumulation + micro
        chunk = slice(part * share, (part + 1) * share)
        own_plan = plan[chunk].to(device) if plan is not None else None
        inputs = [tensor[chunk].to(device, non_blocking=True) for tensor in (x, y, sigma, noise)]
        final = micro == settings.accumulation - 1
        with accelerator.no_sync(loss_module) if not final else torch.enable_grad():
            with accelerator.autocast():
                loss = loss_module(*inputs, own_plan)
            accelerator.backward(loss / settings.accumulation)
        total += loss.detach() / settings.accumulation
    norm = torch.nn.utils.clip_grad_norm_(state.net.parameters(), settings.clip or float("inf"))
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    return total, norm


def draw_batch(
    config: Config, step: int, data: EncodedDataset, order: DataOrder, net: DiT
) -> tuple[Tensor, Tensor, Tensor, Tensor, MaskPlan | None]:
    """All that is random in `step`: images (B, C, H, W), captions (B, S, Y), sigma (B,), noise (B, C, H, W), mask."""
    seed, batch = config.seed, config.training.batch_size
    x, y = data.batch(order(step))
    sigma = draw_sigma(batch, config.diffusion, generator(seed, "sigma", step))
    noise = torch.randn(x.shape, generator=generator(seed, "noise", step))
    dropped = torch.rand(batch, generator=generator(seed, "caption dropout", step)) < config.training.caption_dropout
    y = torch.where(dropped.view(-1, 1, 1), torch.zeros(()), y)
    return x, y, sigma, noise, net.mask_plan(batch, generator(seed, "mask", step))


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
