"""Test users' implementations of every role, and flow matching."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import microdit as md
from microdit.common.errors import ConfigError
from microdit.common.parsing import FrozenOptions, flatten
from microdit.common.rng import generator
from microdit.config.identity import LATER_DEFAULTS, former_keys, trial_key
from microdit.config.schema import Config, config_from_mapping
from microdit.data.registry import build_dataset
from microdit.diffusion import DiffusionConfig, SamplerConfig, build_objective, draw_sigma, sigma_steps
from microdit.diffusion.edm import OBJECTIVES
from microdit.diffusion.objective import Objective
from microdit.model import DiT
from microdit.pipeline.train_and_evaluate import run
from sweeps.config.hydra_compose import compose_mapping
from sweeps.config.study import load_study
from sweeps.planning.trials import arm_configs

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "experiments" / "study" / "README.md"

# One implementation per role. Each notes that it was used.
PLUGIN = """
import numpy as np
import torch
from torch import nn

import microdit as md
from microdit.alignment.patch_encoders import PatchEncoder
from microdit.data.emoji.dataset import EmojiCaptions
from microdit.diffusion.edm import EDM
from microdit.diffusion.noise_distribution import NoiseDistribution
from microdit.evaluation.extensions import FeatureNetwork
from microdit.model.layers.feed_forward import GELU
from microdit.model.layers.patch_mixer import Mixer
from microdit.model.masking.base import DeferredMasking

USED = set()


@md.register_masking("my-masking")
class MyMasking(DeferredMasking):
    def plan(self, draws):
        USED.add("masking")
        return super().plan(draws)


@md.register_feed_forward("my-ffn")
class MyFeedForward(GELU):
    def forward(self, x):
        USED.add("feed-forward")
        return super().forward(x)


@md.register_width_schedule("my-widths")
def my_widths(start, end, depth):
    USED.add("width schedule")
    return [end] * depth


@md.register_mixer("my-mixer")
class MyMixer(Mixer):
    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(config.width, config.width)

    def forward(self, x, c, y):
        USED.add("mixer")
        return x + self.linear(x.mean(1, keepdim=True)) * self.linear.weight.new_tensor(1.0)


@md.register_objective("my-objective")
class MyObjective(EDM):
    def loss_weight(self, sigma):
        USED.add("objective")
        return super().loss_weight(sigma) * self.config.options["weight"]


@md.register_noise_distribution("my-noise")
class LogUniform(NoiseDistribution):
    def quantile(self, share):
        USED.add("noise distribution")
        return (0.01 * (100 / 0.01) ** share)


@md.register_lr_schedule("my-lr")
def my_lr(progress, config):
    USED.add("learning-rate schedule")
    return 1 - progress * config.options["fall"]


@md.register_optimizer("my-optimizer")
def my_optimizer(net, config):
    USED.add("optimizer")
    return torch.optim.SGD(net.parameters(), lr=config.lr, momentum=config.options["momentum"])


@md.register_sampler("my-sampler")
def my_sampler(model, x, sigmas, config, generators, callback):
    USED.add("sampler")
    levels = torch.full((len(x),), sigmas[0].item(), device=x.device)
    return model(x.float(), levels).double()


@md.register_noise_schedule("my-schedule")
def my_schedule(config):
    USED.add("noise schedule")
    return torch.linspace(config.sigma_max, 0, config.steps + 1)


@md.register_dataset("my-data")
class MyData(EmojiCaptions):
    def __getitem__(self, i):
        USED.add("dataset")
        return super().__getitem__(i)


@md.register_text_encoder("my-text")
class MyText:
    layer = "last"
    width, length = 128, 3
    fingerprint = "my-text-1"

    def __init__(self, config, device):
        self.device = device

    def encode(self, captions):
        USED.add("text encoder")
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        return (lengths.view(-1, 1, 1) / 40).expand(-1, self.length, self.width).contiguous().to(self.device)


@md.register_metric("brightness_gap")
def brightness_gap(images, captions, real):
    USED.add("metric")
    return abs(images.mean() - real.mean()) + 1.0


@md.register_feature_network("my-net")
class MyNet(FeatureNetwork):
    width = 12
    fingerprint = "my-net-1"

    def features(self, images):
        USED.add("feature network")
        pooled = nn.functional.adaptive_avg_pool2d(images.float(), 2)
        return pooled.flatten(1)


@md.register_patch_encoder("my-patches")
class MyPatches(PatchEncoder):
    width = 3
    fingerprint = "my-patches-1"

    def encode(self, images):
        USED.add("patch encoder")
        pixels = images.permute(0, 3, 1, 2).float()
        return nn.functional.adaptive_avg_pool2d(pixels, self.side).flatten(2).transpose(1, 2)
"""
ROLES = {  # role: (key, registered name, attribute for a dotted path)
    "masking": ("model.masking.method", "my-masking", "MyMasking"),
    "feed-forward": ("model.ffn.type", "my-ffn", "MyFeedForward"),
    "width schedule": ("model.ffn_width.schedule", "my-widths", "my_widths"),
    "mixer": ("model.mixer.type", "my-mixer", "MyMixer"),
    "objective": ("diffusion.objective", "my-objective", "MyObjective"),
    "noise distribution": ("diffusion.distribution", "my-noise", "LogUniform"),
    "learning-rate schedule": ("schedule.type", "my-lr", "my_lr"),
    "optimizer": ("optimizer.type", "my-optimizer", "my_optimizer"),
    "sampler": ("sampler.type", "my-sampler", "my_sampler"),
    "noise schedule": ("sampler.schedule", "my-schedule", "my_schedule"),
    "dataset": ("data.name", "my-data", "MyData"),
    "text encoder": ("text.encoder", "my-text", "MyText"),
    "metric": ("evaluation.metrics", "[fd,brightness_gap]", "brightness_gap"),
    "feature network": ("evaluation.feature_net", "my-net", "MyNet"),
    "patch encoder": ("alignment.encoder", "my-patches", "MyPatches"),
}
OPTIONS = [
    "diffusion.options.weight=0.5",
    "schedule.options.fall=0.5",
    "optimizer.options.momentum=0.5",
    "model.masking.ratio=0.5",
    "training.steps=2",
    "training.checkpoint_every=0",
    "schedule.warmup_steps=0",
    "evaluation.samples=8",
    "evaluation.reference_count=16",
]

# (scale, arm) -> trial key, computed by the commit before the packages were formed
RECORDED_KEYS = {
    ("smoke", "none"): "ca716a8eca7e52b1",
    ("smoke", "naive_75"): "2f1fddd732a590f9",
    ("smoke", "deferred_75"): "abfb1792da542fe9",
    ("smoke", "maskdit_75"): "5a638a797911043b",
    ("demo", "none"): "3a38fe9e689461e4",
    ("demo", "deferred_75"): "2f0d83eb87a218f0",
    ("demo", "naive_75"): "6fe103d5f2bdb449",
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "every_role_plugin"
    (tmp_path / f"{name}.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def composed(plugin: str, words: list[str], cache: Path) -> Config:
    fixed = [f"plugins=[{plugin}]", "scale=smoke", f"cache_dir={cache}", f"output_dir={cache / 'run'}"]
    return config_from_mapping(compose_mapping([*fixed, *OPTIONS, *words]))


@pytest.mark.parametrize("dotted", [False, True])
def test_a_users_file_plays_every_role(plugin: str, dotted: bool, tmp_path: Path) -> None:
    words = []
    for role, (key, name, attribute) in ROLES.items():
        path = f"{plugin}.{attribute}"
        words.append(f"{key}={f'[fd,{path}]' if role == 'metric' else path}" if dotted else f"{key}={name}")
    config = composed(plugin, words, tmp_path)
    module = sys.modules[plugin]
    module.USED.clear()
    values = run(config)
    assert set(ROLES) == module.USED
    assert values["final/brightness_gap"] >= 1
    assert values["final/fd"] >= 0


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("metric", "dataset")])
def test_a_wrong_name_of_a_role_is_rejected_with_its_key(role: str, plugin: str, tmp_path: Path) -> None:
    key, name, _ = ROLES[role]
    composed(plugin, [], tmp_path)  # registers the names
    label = "model.ffn_width.schedule" if role == "width schedule" else key
    with pytest.raises(ConfigError, match=rf"'{label}' is '{name}x'; did you mean '{name}'\?"):
        composed(plugin, [f"{key}={name}x"], tmp_path)


def test_a_wrong_name_of_a_dataset_or_metric_is_rejected(plugin: str, tmp_path: Path) -> None:
    config = composed(plugin, ["data.name=my-datum"], tmp_path)
    with pytest.raises(ConfigError, match=r"'data\.name' is 'my-datum'; did you mean 'my-data'\?"):
        build_dataset(config.data, "train")
    with pytest.raises(ConfigError, match=r"'evaluation\.metrics' is 'brightnes_gap'; did you mean 'brightness_gap'\?"):
        composed(plugin, ["evaluation.metrics=[fd,brightnes_gap]"], tmp_path)


def test_new_settings_leave_the_keys_of_stored_runs_unchanged(smoke_config: Config) -> None:
    """Algorithm 2 recorded the keys before the settings existed."""
    for (scale, arm), key in RECORDED_KEYS.items():
        study = load_study("masking_ratio", scale)
        config = dataclasses.replace(arm_configs(study, [], False)[arm], seed=study.seeds[0])
        assert former_keys(config)[2] == key
    for key in ("diffusion.objective", "diffusion.distribution", "sampler.schedule", "model.mixer.type"):
        assert key in LATER_DEFAULTS
    changed = dataclasses.replace(smoke_config.sampler, options=FrozenOptions({"a": 1}))
    assert trial_key(dataclasses.replace(smoke_config, sampler=changed)) != trial_key(smoke_config)


def test_a_noise_schedule_must_fall_to_zero() -> None:
    from microdit.diffusion.noise_schedules import NOISE_SCHEDULES

    for wrong in (
        lambda c: torch.ones(c.steps + 1),
        lambda c: torch.linspace(80, 1, c.steps + 1),
        lambda c: torch.zeros(1),
    ):
        NOISE_SCHEDULES._entries["wrong"] = wrong
        with pytest.raises(ConfigError, match=r"'sampler\.schedule' is 'wrong'; it must return 6 finite noise levels"):
            sigma_steps(SamplerConfig(steps=5, schedule="wrong"))
    del NOISE_SCHEDULES._entries["wrong"]


def flow_matching(page: str) -> type[Objective]:
    """Return the class defined in a block of the page on studies."""
    text = page.split("```python flow_matching.py\n")[1].split("```")[0]
    space: dict[str, object] = {"__name__": "flow_matching_of_the_page"}
    OBJECTIVES._entries.pop("flow", None)  # another test of this process may have imported the page's module
    exec(text, space)
    return space["FlowMatching"]  # type: ignore[return-value]


MEAN, STD = 0.7, 0.5


class ExactVelocity(nn.Module):
    """Compute E[noise - clean | x_t] for clean ~ N(MEAN, STD^2) at x_t = (1 - t) clean + t noise; record t."""

    def __init__(self, net: DiT, level: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.config, self.masking = net.config, net.masking
        self.level = level

    def forward(self, x: Tensor, c: Tensor, y: Tensor, plan: object = None) -> Tensor:
        t = self.level(c).view(-1, 1, 1, 1)
        variance = (1 - t) ** 2 * STD**2 + t**2
        gain = (t - (1 - t) * STD**2) / variance
        return gain * (x - (1 - t) * MEAN) - MEAN


def test_flow_matching_of_the_page_is_a_denoiser(smoke_config: Config) -> None:
    """With the exact velocity, D is the posterior mean; the loss is the velocity's error."""
    kind = flow_matching(PAGE.read_text())
    net = DiT(smoke_config.model, seed=0)
    exact = ExactVelocity(net, lambda c: torch.sigmoid(4 * c))  # the network gets ln(sigma) / 4 = logit(t) / 4
    objective = kind(exact, 0.5)  # type: ignore[arg-type]
    shape = (6, net.config.in_channels, net.config.input_size, net.config.input_size)
    clean, noise = (torch.randn(shape, generator=generator(0, name)) for name in ("clean", "noise"))
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 50.0])
    s = sigma.view(-1, 1, 1, 1)
    x = clean + s * noise
    expected = (STD**2 * x + s**2 * MEAN) / (STD**2 + s**2)
    torch.testing.assert_close(objective(x, sigma, torch.zeros(6, 1, 1)), expected, rtol=1e-4, atol=1e-4)

    t = s / (1 + s)
    velocity = exact((1 - t) * clean + t * noise, sigma.log() / 4, torch.zeros(6, 1, 1))
    by_hand = (velocity - (noise - clean)).square().mean((1, 2, 3))
    loss = objective.loss(clean, torch.zeros(6, 1, 1), sigma, noise)
    torch.testing.assert_close(loss, by_hand, rtol=1e-3, atol=1e-4)


def test_flow_matching_of_the_page_trains(smoke_config: Config) -> None:
    """Some steps on one batch reduce the loss by a third."""
    net = DiT(smoke_config.model, seed=0)
    objective = flow_matching(PAGE.read_text())(net, 0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    shape = (8, net.config.in_channels, net.config.input_size, net.config.input_size)
    clean = torch.randn((8, shape[1], 1, 1), generator=generator(0, "clean")).expand(shape).contiguous()
    y = torch.randn((8, 3, net.config.caption_channels), generator=generator(0, "y"))
    config = DiffusionConfig(p_mean=0.0, p_std=1.0)
    losses = []
    for step in range(40):
        sigma = draw_sigma(8, config, generator(0, "sigma", step))
        loss = objective.loss(clean, y, sigma, torch.randn(shape, generator=generator(0, "noise", step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.67 * sum(losses[:5])


def test_an_objective_with_parameters_of_its_own_is_rejected(
    smoke_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from microdit.diffusion.edm import EDM, OBJECTIVES

    class Weighted(EDM):
        def __init__(self, net: DiT, sigma_data: float, config: DiffusionConfig) -> None:
            super().__init__(net, sigma_data, config)
            self.scale = nn.Parameter(torch.ones(()))

    monkeypatch.setitem(OBJECTIVES._entries, "weighted", Weighted)
    with pytest.raises(ConfigError, match=r"'diffusion\.objective' is 'weighted', which has parameters.*scale"):
        build_objective(DiffusionConfig(objective="weighted"), DiT(smoke_config.model, seed=0), 0.5)


def test_the_page_lists_every_extension_point() -> None:
    """Its keys, decorators and files exist, and no decorator is left out."""
    rows = re.findall(r"^\| .* \| (`.*`) \| (?:`(\w+)`)? ?\| .* \| `(\S+)` \|$", PAGE.read_text(), re.MULTILINE)
    settings = flatten(compose_mapping([]), empty=True)
    for keys, decorator, path in rows:
        if decorator:
            assert all(key in settings for key in re.findall(r"`([^`]+)`", keys)), keys
            assert callable(getattr(md, decorator))
        assert (ROOT / "microdit" / path).is_file(), path
    assert {decorator for _, decorator, _ in rows if decorator} == {n for n in md.PUBLIC if n.startswith("register_")}
