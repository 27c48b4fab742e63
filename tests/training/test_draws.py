"""Test the inputs of the loss at each step: noise, levels, mask, dropped captions and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from microdit.config.schema import Config
from microdit.diffusion import EDM
from microdit.model import PatchMask
from microdit.model.config import MaskingConfig, RouteConfig
from microdit.pipeline.inputs import build_accelerator, build_components
from microdit.pipeline.run_logger import NullLogger
from microdit.pipeline.train_and_evaluate import run_identity
from microdit.training.trainer import train

STEPS, BATCH = 6, 8


@dataclass(frozen=True)
class Draw:
    """Hold the loss's arguments at one step."""

    x: Tensor
    y: Tensor
    sigma: Tensor
    noise: Tensor
    plan: PatchMask | None

    @property
    def nulls(self) -> Tensor:
        """Return which captions were dropped (B,): the null caption is all zeros."""
        return (self.y == 0).flatten(1).all(1)


Drawn = Callable[..., list[Draw]]


@pytest.fixture
def drawn(smoke_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Train and return the draws of each step; keywords change `training`, `masking` replaces the masking."""
    original = EDM.loss

    def run(masking: MaskingConfig | None = None, seed: int = 0, **training: object) -> list[Draw]:
        seen: list[Draw] = []

        def spy(self: EDM, x: Tensor, y: Tensor, sigma: Tensor, noise: Tensor, plan: PatchMask | None) -> Tensor:
            seen.append(Draw(x, y, sigma, noise, plan))
            return original(self, x, y, sigma, noise, plan)

        changes = {"steps": STEPS, "batch_size": BATCH, "caption_dropout": 0.5, "checkpoint_every": 0, "val_every": 0}
        config = replace(
            smoke_config,
            seed=seed,
            output_dir=str(tmp_path / str(len([*tmp_path.iterdir()]))),
            training=replace(smoke_config.training, **changes | training),
            model=replace(smoke_config.model, masking=masking or MaskingConfig("deferred", 0.5)),
        )
        components = build_components(config)
        with monkeypatch.context() as patched:
            patched.setattr(EDM, "loss", spy)
            train(
                config,
                components.train,
                components.val,
                run_identity(config, components),
                NullLogger(),
                build_accelerator(config),
            )
        return seen

    return run


def shared(one: Tensor, other: Tensor) -> float:
    """Return the share of values of `one` that occur in `other`; a few float32 values coincide by chance."""
    return torch.isin(one, other).float().mean().item()


def test_every_step_has_its_own_draws(drawn: Drawn):
    draws = drawn()
    assert len(draws) == STEPS
    for one, other in combinations(draws, 2):
        assert shared(one.noise, other.noise) < 0.01
        assert not torch.isin(one.sigma, other.sigma).any()
        assert not torch.equal(one.plan.mask, other.plan.mask)
        assert not torch.equal(one.nulls, other.nulls)
        assert not torch.equal(one.x, other.x)
        assert not torch.equal(one.y, other.y)


def test_every_image_of_a_step_has_its_own_draws(drawn: Drawn):
    draw = drawn(steps=1)[0]
    for i, j in combinations(range(BATCH), 2):
        assert shared(draw.noise[i], draw.noise[j]) < 0.01
        assert draw.sigma[i] != draw.sigma[j]
        assert not torch.equal(draw.x[i], draw.x[j])
    assert len({tuple(row) for row in draw.plan.mask.tolist()}) > 1
    assert 0 < draw.nulls.sum() < BATCH


def test_draws_depend_on_step_and_seed(drawn: Drawn):
    first, again, other = drawn(), drawn(), drawn(seed=1)
    for one, twin, stranger in zip(first, again, other, strict=True):
        for field in ("x", "y", "sigma", "noise"):
            assert torch.equal(getattr(one, field), getattr(twin, field))
            assert not torch.equal(getattr(one, field), getattr(stranger, field))
        assert torch.equal(one.plan.mask, twin.plan.mask)
        assert not torch.equal(one.plan.mask, stranger.plan.mask)
    dropped = [[draw.nulls.tolist() for draw in draws] for draws in (first, again, other)]
    assert dropped[0] == dropped[1] != dropped[2]


def test_draws_do_not_depend_on_run_length_or_micro_batches(drawn: Drawn):
    whole, longer, split = drawn(), drawn(steps=STEPS + 2), drawn(accumulation=2)
    for one, twin in zip(whole, longer[:STEPS], strict=True):
        assert torch.equal(one.noise, twin.noise)
    for step, one in enumerate(whole):
        halves = split[2 * step : 2 * step + 2]
        for field in ("x", "y", "sigma", "noise"):
            assert torch.equal(getattr(one, field), torch.cat([getattr(half, field) for half in halves]))
        assert torch.equal(one.plan.mask, torch.cat([half.plan.mask for half in halves]))
        assert torch.equal(one.plan.ids_keep, torch.cat([half.plan.ids_keep for half in halves]))


@pytest.mark.parametrize("method", ["deferred", "naive", "maskdit", "routing", "sprint"])
@pytest.mark.parametrize(("tail", "masked"), [(0.0, 6), (0.5, 3), (0.4, 4), (1.0, 0)])
def test_only_the_tail_is_unmasked(drawn: Drawn, method: str, tail: float, masked: int):
    masking = MaskingConfig(method, 0.5, route=RouteConfig(1, 0))
    draws = drawn(masking, unmasked_tail=tail)
    patches = 16
    for step, draw in enumerate(draws):
        if step < masked:
            assert draw.plan is not None
            assert draw.plan.mask.sum(1).tolist() == [patches / 2] * BATCH
        else:
            assert draw.plan is None


def test_in_the_tail_sprint_only_skips_blocks(drawn: Drawn):
    """A plan with images that skip the middle blocks then drops no patch."""
    masking = MaskingConfig("sprint", 0.5, route=RouteConfig(1, 0, path_drop=0.5))
    draws = drawn(masking, unmasked_tail=0.5)
    dropped = [draw.plan.mask.sum(1).tolist() for draw in draws]
    assert dropped == [[8] * BATCH] * 3 + [[0] * BATCH] * 3
    paths = [tuple(draw.plan.shallow.tolist()) for draw in draws]
    assert len(set(paths)) == STEPS


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_caption_dropout_of_zero_and_one(drawn: Drawn, share: float):
    for draw in drawn(caption_dropout=share, steps=2):
        assert draw.nulls.float().mean() == share


def test_draws_have_the_configured_distributions(drawn: Drawn, smoke_config: Config):
    draws = drawn(steps=8, batch_size=48, caption_dropout=0.25)
    logs = torch.cat([draw.sigma for draw in draws]).log().numpy()
    noise = torch.cat([draw.noise.flatten() for draw in draws]).numpy()
    count = len(logs)
    assert logs.mean() == pytest.approx(smoke_config.diffusion.p_mean, abs=4 * 1.2 / np.sqrt(count))
    assert logs.std() == pytest.approx(smoke_config.diffusion.p_std, rel=4 / np.sqrt(2 * count))
    assert noise.mean() == pytest.approx(0, abs=4 / np.sqrt(len(noise)))
    assert noise.std() == pytest.approx(1, rel=4 / np.sqrt(2 * len(noise)))
    nulls = torch.cat([draw.nulls for draw in draws]).float().mean().item()
    assert nulls == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / count))
    kept = np.mean([draw.plan.mask.mean(0).numpy() for draw in draws], axis=0)  # each patch's share of being dropped
    assert kept == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / count))
