"""Test samplers on problems with known solutions, and the laws of EDM's preconditioning."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from microdit.common.errors import ConfigError
from microdit.common.rng import generator
from microdit.config.schema import Config
from microdit.diffusion import (
    EDM,
    DiffusionConfig,
    GuidanceInterval,
    SamplerConfig,
    draw_sigma,
    guided,
    quantile_sigma,
    sample,
    sigma_steps,
)
from microdit.diffusion.config import ChurnConfig, GuidedBy
from microdit.diffusion.guidance import GuidedModel, Model

MEAN, STD = 0.7, 0.5


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the exact denoiser of data ~ N(MEAN, STD^2): the posterior mean."""
    s = sigma.view(-1, 1, 1, 1)
    return (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)


def exact_flow(noise: Tensor, sigma_max: float) -> Tensor:
    """Return the ODE's solution at sigma 0 for that denoiser, in closed form."""
    return MEAN + (noise.double() * sigma_max - MEAN) * STD / (STD**2 + sigma_max**2) ** 0.5


NOISE = torch.randn(2, 4, 8, 8, generator=generator(0, "test"))


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2)])
def test_error_decreases_with_the_order_of_the_method(kind: str, order: int):
    errors = []
    for steps in (32, 64, 128):
        config = SamplerConfig(kind, steps)
        errors.append((sample(gaussian_denoiser, NOISE, config) - exact_flow(NOISE, 80.0)).abs().mean().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.3)


def churn(count: int) -> list[torch.Generator]:
    return [generator(0, "churn", i) for i in range(count)]


def test_churn_keeps_the_distribution_and_needs_a_generator():
    config = SamplerConfig("heun", 40, churn=ChurnConfig(amount=20.0))
    noise = torch.randn(64, 4, 8, 8, generator=generator(1, "test"))
    out = sample(gaussian_denoiser, noise, config, churn(len(noise)))
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(STD, rel=0.06)
    plain = sample(gaussian_denoiser, noise, SamplerConfig("heun", 40))
    assert (out - plain).abs().mean() > 0.1  # it really is another path
    assert torch.equal(out, sample(gaussian_denoiser, noise, config, churn(len(noise))))
    assert torch.equal(out[:3], sample(gaussian_denoiser, noise[:3], config, churn(3)))  # whatever the batch
    with pytest.raises(ConfigError, match=r"sampler\.churn\.amount"):
        sample(gaussian_denoiser, noise, config)


@given(steps=st.integers(2, 100), low=st.floats(1e-3, 0.1), high=st.floats(1.0, 200.0), rho=st.floats(1.0, 10.0))
def test_noise_levels_fall_from_max_to_min_to_zero(steps: int, low: float, high: float, rho: float):
    sigmas = sigma_steps(SamplerConfig(steps=steps, sigma_min=low, sigma_max=high, rho=rho))
    assert len(sigmas) == steps + 1
    assert sigmas[0].item() == pytest.approx(high)
    assert sigmas[-2].item() == pytest.approx(low)
    assert sigmas[-1].item() == 0
    assert (sigmas.diff() < 0).all()


def test_training_noise_is_log_normal():
    config = DiffusionConfig(p_mean=-0.6, p_std=1.2)
    drawn = draw_sigma(20_000, config, generator(0, "sigma")).log()
    assert drawn.mean().item() == pytest.approx(-0.6, abs=0.03)
    assert drawn.std().item() == pytest.approx(1.2, abs=0.03)
    levels = quantile_sigma(1001, config)
    assert (levels.diff() > 0).all()
    assert levels[500].log().item() == pytest.approx(-0.6, abs=1e-5)
    assert levels.log().std().item() == pytest.approx(1.2, abs=0.02)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("sampler.steps", {"steps": 0}),
        ("sampler.sigma_min", {"sigma_min": 100.0}),
        ("sampler.rho", {"rho": 0.0}),
        (r"sampler\.guidance_interval.* none of the sampler's", {"guidance_interval": GuidanceInterval(80.0)}),
        (r"sampler\.guidance_interval.* none of the sampler's", {"guidance_interval": GuidanceInterval(0.0, 0.001)}),
    ],
)
def test_impossible_settings_are_named(key: str, changes: dict):
    with pytest.raises(ConfigError, match=key):
        dataclasses.replace(SamplerConfig(), **changes)


class Counted:
    """Denoise linearly in x, shifted towards the caption, and count the rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        self.rows.append(len(x))
        return (x + sigma.view(-1, 1, 1, 1) * y.mean((1, 2)).view(-1, 1, 1, 1)) / (1 + sigma.view(-1, 1, 1, 1))


CAPTIONS = torch.randn(2, 3, 5, generator=generator(0, "captions"))


def guided_model(denoiser: Counted, guidance: float, interval: GuidanceInterval) -> Model:
    return guided(denoiser, CAPTIONS, guidance, interval)  # type: ignore[arg-type]


def by_hand(config: SamplerConfig, low: float, high: float) -> tuple[Tensor, int]:
    """Integrate with w(sigma) = w if low < sigma <= high, else 1; return samples and evaluated rows."""
    rows = 0

    def slope(x: Tensor, sigma: float) -> Tensor:
        nonlocal rows
        levels, image = torch.full((2,), sigma), x.float()
        conditional = Counted()(image, levels, CAPTIONS)
        null = Counted()(image, levels, torch.zeros_like(CAPTIONS))
        weight = config.guidance if low < sigma <= high else 1.0
        rows += 2 if weight == 1 else 4
        return (x - (weight * conditional + (1 - weight) * null).double()) / sigma

    sigmas = [
        (
            config.sigma_max ** (1 / 7)
            + i / (config.steps - 1) * (config.sigma_min ** (1 / 7) - config.sigma_max ** (1 / 7))
        )
        ** 7
        for i in range(config.steps)
    ]
    x = NOISE[:2].double() * sigmas[0]
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        first = slope(x, sigma)
        moved = x + (following - sigma) * first
        if config.type == "heun" and following:
            moved = x + (following - sigma) * (first + slope(moved, following)) / 2
        x = moved
    return x.float(), rows


# At 8 steps the levels are 80, 35, 13.7, 4.64, 1.29, 0.267, 0.035, 0.002.
@pytest.mark.parametrize(
    ("kind", "low", "high", "evaluations"),
    [
        ("heun", 0.2, 5.0, (9, 6)),
        ("euler", 0.2, 5.0, (5, 3)),
        ("heun", 1.0, None, (6, 9)),
        ("heun", 0.0, 0.01, (13, 2)),
    ],
)
def test_guidance_applies_only_inside_its_interval(
    kind: str, low: float, high: float | None, evaluations: tuple[int, int]
):
    interval = GuidanceInterval(low, high)
    config = SamplerConfig(kind, 8, guidance=3.0, guidance_interval=interval)
    denoiser = Counted()
    out = sample(guided_model(denoiser, 3.0, interval), NOISE, config)
    expected, rows = by_hand(config, low, float("inf") if high is None else high)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert (denoiser.rows.count(2), denoiser.rows.count(4)) == evaluations
    assert sum(denoiser.rows) == rows
    full = sample(guided_model(Counted(), 3.0, GuidanceInterval()), NOISE, config)
    assert (out - full).abs().max() > 0.1


def test_the_interval_is_open_below_and_closed_above():
    inside = GuidanceInterval(0.5, 2.0).contains(torch.tensor([0.49, 0.5, 0.51, 2.0, 2.01]))
    assert inside.tolist() == [False, False, True, True, False]
    config = SamplerConfig("euler", 2, sigma_max=80.3)  # 80.3 is no float32
    denoiser = Counted()
    sample(guided_model(denoiser, 3.0, GuidanceInterval(1.0, 80.3)), NOISE, config)
    assert denoiser.rows == [4, 2]


def test_guidance_inside_its_interval_equals_unlimited_guidance():
    sigma, both = torch.full((2,), 1.5), torch.cat([CAPTIONS, torch.zeros_like(CAPTIONS)])
    conditional, null = Counted()(NOISE.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
    expected = null + 1.7 * (conditional - null)
    for interval in (GuidanceInterval(), GuidanceInterval(1.0, 2.0)):
        assert torch.equal(guided_model(Counted(), 1.7, interval)(NOISE, sigma), expected)
    mixed = guided_model(Counted(), 1.7, GuidanceInterval(1.0, 2.0))(NOISE, torch.tensor([1.5, 2.5]))
    assert torch.equal(mixed[0], expected[0])
    assert torch.equal(mixed[1], Counted()(NOISE, torch.full((2,), 2.5), CAPTIONS)[1])


@given(
    level=st.sampled_from([0.1, 0.5, 80.3]) | st.floats(1e-3, 100),
    low=st.sampled_from([0.0, 0.1, 0.5, 80.3]),
    high=st.sampled_from([0.5, 80.3, 1e300, None]),
)
def test_one_level_for_all_images_gives_the_prediction_at_that_level(level: float, low: float, high: float | None):
    assume(high is None or high > low)
    model, sigma = guided_model(Counted(), 1.7, GuidanceInterval(low, high)), torch.full((2,), level)
    assert isinstance(model, GuidedModel)
    assert torch.equal(model.at_level(NOISE, sigma, level), model(NOISE, sigma))


def test_generate_uses_the_samplers_interval_and_weaker_prediction(smoke_config: Config):
    from microdit.model import DiT, MaskingConfig
    from microdit.pipeline.generate import generate
    from microdit.pipeline.inputs import build_components

    parts = build_components(smoke_config)
    sprint = MaskingConfig("sprint", route=dataclasses.replace(smoke_config.model.masking.route, path_drop=0.1))
    net = DiT(dataclasses.replace(smoke_config.model, masking=sprint), seed=0)
    torch.nn.init.normal_(net.final_layer.linear.weight, generator=generator(0, "head"))  # zero at first: no guidance
    torch.nn.init.normal_(net.final_layer.adaLN_modulation[1].weight, generator=generator(0, "adaLN"))
    features = parts.val.batch(torch.arange(3).numpy())[1]

    def draw(guidance: float, interval: GuidanceInterval, by: GuidedBy = "caption") -> Tensor:
        config = SamplerConfig(steps=4, guidance=guidance, guidance_by=by, guidance_interval=interval)
        return torch.from_numpy(generate(EDM(net, 0.5), parts.autoencoder, features, config, seed=0))

    plain, full = draw(1.0, GuidanceInterval()), draw(4.0, GuidanceInterval())
    assert torch.equal(draw(4.0, GuidanceInterval(20.0, 70.0)), plain)  # no level inside: 80, 9.7, 0.47, 0.002
    assert torch.equal(draw(4.0, GuidanceInterval(0.001, 80.0)), full)
    some = draw(4.0, GuidanceInterval(0.1, 20.0))
    assert not torch.equal(some, plain)
    assert not torch.equal(some, full)
    assert not torch.equal(draw(4.0, GuidanceInterval(), "path_drop"), full)
    assert torch.equal(draw(4.0, GuidanceInterval(20.0, 70.0), "path_drop"), plain)


@pytest.mark.parametrize(
    ("ends", "key"), [((-1.0, None), "sigma_low"), ((2.0, 2.0), "sigma_high"), ((2.0, 1.0), "null")]
)
def test_an_empty_interval_is_rejected(ends: tuple[float, float | None], key: str):
    with pytest.raises(ConfigError, match=rf"sampler\.guidance_interval\..*{key}"):
        GuidanceInterval(*ends)


def test_an_interval_without_guidance_is_rejected(smoke_config: Config):
    limited = dataclasses.replace(smoke_config.sampler, guidance=1.0, guidance_interval=GuidanceInterval(1.0))
    with pytest.raises(ConfigError, match=r"'sampler\.guidance_interval' is set, but 'sampler\.guidance' is 1"):
        dataclasses.replace(smoke_config, sampler=limited)
    scored = dataclasses.replace(smoke_config.evaluation, guidance=2.0)
    dataclasses.replace(smoke_config, sampler=limited, evaluation=scored)  # scores have guidance


@pytest.mark.parametrize(("amount", "growth"), [(0.3, 1.3), (9.0, 2**0.5)], ids=["below the cap", "at the cap"])
def test_noise_is_raised_as_in_algorithm_2(amount: float, growth: float):
    """Compare one step of Euler's method with churn with the paper's lines, in double precision."""
    config = SamplerConfig("euler", 1, sigma_max=2.0, churn=ChurnConfig(amount, 0.5, 3.0, 1.5))
    raised = 2.0 * growth
    fresh = torch.stack([torch.randn(4, 8, 8, generator=each, dtype=torch.float64) for each in churn(2)])
    x = NOISE.double() * 2.0 + (raised**2 - 2.0**2) ** 0.5 * 1.5 * fresh
    slope = (x - gaussian_denoiser(x.float(), torch.full((2,), raised)).double()) / raised
    expected = (x - raised * slope).float()
    torch.testing.assert_close(sample(gaussian_denoiser, NOISE, config, churn(2)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("low", "high", "churns"), [(1.99, 2.01, True), (2.1, 9.0, False), (0.0, 1.9, False)])
def test_noise_is_raised_only_between_its_levels(low: float, high: float, churns: bool):
    config = SamplerConfig("euler", 1, sigma_max=2.0, churn=ChurnConfig(0.3, low, high))
    plain = sample(gaussian_denoiser, NOISE, SamplerConfig("euler", 1, sigma_max=2.0))
    # The denoiser is linear, and one step to 0 gives what it predicts: raised noise changes that.
    assert torch.equal(sample(gaussian_denoiser, NOISE, config, churn(2)), plain) != churns


def test_models_get_float32_and_noise_levels_are_float64():
    kinds = set()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        kinds.update((x.dtype, sigma.dtype))
        return x

    sample(model, NOISE, SamplerConfig(steps=1))
    assert kinds == {torch.float32}
    assert sigma_steps(SamplerConfig()).dtype == torch.float64


def test_bounds_of_sampler_settings_are_allowed():
    assert sigma_steps(SamplerConfig(steps=1)).tolist() == pytest.approx([80.0, 0.0])
    SamplerConfig(guidance_interval=GuidanceInterval(0.0, 0.002), guidance=2.0)  # sigma_min lies inside
    for wrong in (0.0, -1.0):
        with pytest.raises(ConfigError, match=r"'diffusion\.sigma_data'"):
            DiffusionConfig(sigma_data=wrong)


def test_sigma_min_must_be_below_sigma_max():
    for low in (2.0, 3.0):
        with pytest.raises(ConfigError, match=r"'sampler\.sigma_min'"):
            SamplerConfig(sigma_min=low, sigma_max=2.0)


def test_churn_settings_have_bounds():
    with pytest.raises(ConfigError, match=r"'sampler\.churn\.amount' is 10000000\.0"):
        ChurnConfig(amount=1e7)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_callback_sees_the_latents_after_each_step(sampler: str):
    seen: list[tuple[int, int, torch.Tensor]] = []
    noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    config = SamplerConfig(sampler, steps=3)
    drawn = sample(lambda x, sigma: x / 2, noise, config, callback=lambda *step: seen.append(step))
    assert [(step, steps) for step, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(seen[-1][2].float(), drawn)
    assert len({float(x.abs().sum()) for _, _, x in seen}) == 3
