"""Test alignment with a frozen network's patch features: the loss, unchanged draws, and the feature cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from mlflow import MlflowClient
from safetensors.torch import load_file
from torch import Tensor, nn

from microdit.alignment.config import AlignmentConfig
from microdit.alignment.feature_cache import encode_targets
from microdit.alignment.loss import NoAlignment, PatchAlignment, build_alignment
from microdit.alignment.patch_encoders import LITE0, LITE0_MAPS, Lite0Patches, PatchEncoder
from microdit.common.errors import ConfigError
from microdit.common.rng import generator
from microdit.config.identity import trial_key
from microdit.config.schema import Config, load_config, save_config
from microdit.data.latents.training_data import BatchSampler
from microdit.data.registry import build_dataset
from microdit.diffusion import EDM
from microdit.encoders.efficientnet_lite0 import build_lite0
from microdit.model import DiT, PatchMask
from microdit.model.cost import network as cost
from microdit.pipeline import cost as budget
from microdit.pipeline.evaluate import evaluate_run
from microdit.pipeline.inputs import build_components
from microdit.pipeline.run_logger import NullLogger
from microdit.pipeline.train_and_evaluate import run
from microdit.training.feed.batches import draw_batch
from microdit.training.trainer import TrainingLoss, initial_state, optimizer_step
from microdit.training.validation import validate
from sweeps.cli import main
from sweeps.config.study import load_study
from sweeps.planning.throughput import measure_seconds_per_image
from sweeps.planning.trials import plan_trials, prepare_trials

HERE = f"{__name__}.Colors"


class Colors(PatchEncoder):
    """Encode a patch as its mean color and the square of it, as a plugin."""

    width = 6
    fingerprint = "colors"
    calls = 0

    def encode(self, images: Tensor) -> Tensor:
        type(self).calls += 1
        x = nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, self.side)
        x = x.flatten(2).transpose(1, 2)
        return torch.cat([x, x.square()], dim=-1)


class Shades(Colors):
    fingerprint = "shades"

    def encode(self, images: Tensor) -> Tensor:
        return 1 - super().encode(images)


class Crooked(Colors):
    fingerprint = "crooked"

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images)[:, 1:]


class Huge(Colors):
    fingerprint = "huge"

    def encode(self, images: Tensor) -> Tensor:
        return 1e6 * super().encode(images)


class Log(NullLogger):
    """Record the curves; interrupt the run after `kill_at` finished steps."""

    def __init__(self, kill_at: int = 0) -> None:
        self.values: dict[tuple[str, int], float] = {}
        self.kill_at = kill_at

    def metrics(self, step: int, values: dict) -> None:
        kept = {name: value for name, value in values.items() if name.startswith(("train/", "val/", "grad"))}
        self.values |= {(name, step): value for name, value in kept.items()}
        if step == self.kill_at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def colors(smoke_config: Config) -> Config:
    """Align with a cheap plugin, with deferred masking."""
    return dataclasses.replace(smoke_config, plugins=(__name__,), alignment=AlignmentConfig(HERE, weight=0.5))


def aligned(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, alignment=dataclasses.replace(config.alignment, **changes))


def training(config: Config, out: Path, **changes: object) -> Config:
    changed = dataclasses.replace(config.training, **{"log_every": 1, **changes})
    return dataclasses.replace(config, output_dir=str(out), training=changed)


def masked(config: Config, method: str, ratio: float) -> Config:
    masking = dataclasses.replace(config.model.masking, method=method, ratio=ratio)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, masking=masking))


def tokens_after(net: DiT, block: int, x: Tensor, t: Tensor, y: Tensor, plan: PatchMask | None) -> Tensor:
    """Return a block's output by running the network again, without hooks."""
    tokens = net.x_embedder(x) + net.pos_embed
    c, y = net.condition(t, y)
    tokens = net.mixer.project_out(net.masking.drop(net.mixer(tokens, c, y), plan))
    for layer in list(net.blocks)[:block]:
        tokens = layer(tokens, c, y)
    return tokens


def a_step(config: Config) -> tuple[TrainingLoss, list[Tensor], PatchMask | None]:
    """Return a loss module at its initial weights, and the inputs of its first step."""
    data = build_components(config).train
    state = initial_state(config, torch.device("cpu"))
    *inputs, plan = draw_batch(config, 0, data, BatchSampler(len(data), 8, 0), state.net).arguments()
    return TrainingLoss(EDM(state.net, 0.5), state.alignment), inputs, plan


@pytest.mark.parametrize(("method", "ratio"), [("none", 0.0), ("naive", 0.5), ("deferred", 0.75)])
@pytest.mark.parametrize("block", [1, 2])
def test_the_loss_is_that_of_the_paper(colors: Config, method: str, ratio: float, block: int):
    """Compute the term patch by patch: -lambda / N sum of cosines over the kept patches."""
    module, inputs, plan = a_step(masked(aligned(colors, block=block, weight=0.3), method, ratio))
    x, y, sigma, noise, target = inputs
    loss, readings = module(*inputs, plan)

    level = sigma.view(-1, 1, 1, 1)
    tokens = tokens_after(
        module.denoiser.net,
        block,
        (x + level * noise) / (level.square() + 0.25).sqrt(),
        sigma.log() / 4,
        y,
        plan,
    )
    first, second, third = (module.alignment.projector[i] for i in (0, 2, 4))
    cosines = []
    for image in range(len(x)):
        kept = range(16) if plan is None else plan.ids_keep[image].tolist()
        assert len(kept) == round(16 * (1 - ratio))
        for place, patch in enumerate(kept):
            h = nn.functional.silu(first.weight @ tokens[image, place] + first.bias)
            h = third.weight @ nn.functional.silu(second.weight @ h + second.bias) + third.bias
            wanted = target[image, patch].float()
            cosines.append(h @ wanted / (h.norm() * wanted.norm()))
    expected = torch.stack(cosines).mean()
    denoising = module.denoiser.loss(x, y, sigma, noise, plan).mean()
    torch.testing.assert_close(readings["train/alignment"], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, denoising - 0.3 * expected, rtol=1e-5, atol=1e-6)
    assert readings["train/loss"] == denoising


def test_of_dropped_patches_nothing_is_asked(colors: Config):
    module, inputs, plan = a_step(colors)
    assert plan is not None
    loss, _ = module(*inputs, plan)
    target = inputs[4]
    noise = torch.randn(target.shape, generator=generator(0, "other"))
    dropped = torch.where(plan.mask.unsqueeze(-1) == 1, noise, target)
    kept = torch.where(plan.mask.unsqueeze(-1) == 0, noise, target)
    assert torch.equal(module(*inputs[:4], dropped, plan)[0], loss)
    assert not torch.equal(module(*inputs[:4], kept, plan)[0], loss)


def test_gradients_reach_the_projector_and_the_blocks_up_to_the_aligned_one(colors: Config):
    """The head starts at zero, so at the first step the denoising loss moves the head alone."""
    module, inputs, plan = a_step(aligned(colors, block=1))
    module(*inputs, plan)[0].backward()
    grads = {name.split("denoiser.net.")[-1]: parameter.grad for name, parameter in module.named_parameters()}
    moved = {name for name, grad in grads.items() if grad is not None and grad.any()}
    assert {f"alignment.projector.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")} <= moved
    assert {"blocks.0.cross_attn.proj.weight", "x_embedder.proj.weight", "final_layer.linear.weight"} <= moved
    assert not [name for name in moved if name.startswith("blocks.1.")]


def test_passes_without_gradients_leave_no_tokens(colors: Config):
    module, inputs, plan = a_step(colors)
    with torch.no_grad():
        module.denoiser.loss(*inputs[:4], plan)
    assert module.alignment._tokens is None
    module(*inputs, plan)
    assert module.alignment._tokens is None


def test_the_loss_traces_into_one_graph(colors: Config):
    module, inputs, plan = a_step(colors)
    loss, readings = module(*inputs, plan)
    traced = torch.compile(module, backend="eager", fullgraph=True)
    for _ in range(2):
        again, same = traced(*inputs, plan)
        torch.testing.assert_close((again, same), (loss, readings))
    again.backward()
    assert module.alignment.projector[0].weight.grad.any()


@pytest.fixture(scope="module")
def plain(smoke_config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log]:
    """Return a run without alignment, to compare with."""
    out, log = tmp_path_factory.mktemp("plain"), Log()
    run(training(smoke_config, out, val_every=2), log)
    return out, log


def same_weights(one: Path, other: Path, name: str = "model.safetensors") -> bool:
    ours, theirs = load_file(one / name), load_file(other / name)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("change", [{"encoder": "none"}, {"weight": 0.0}])
def test_what_counts_for_nothing_changes_nothing(colors: Config, plain: tuple[Path, Log], tmp_path: Path, change: dict):
    log, before = Log(), Colors.calls
    run(training(aligned(colors, **change), tmp_path, val_every=2), log)
    assert same_weights(tmp_path, plain[0])
    assert log.values == plain[1].values
    assert not [name for name, _ in log.values if name == "train/alignment"]
    assert Colors.calls == before


def test_an_aligned_run_starts_as_the_plain_one_and_logs_one_curve_more(
    colors: Config, plain: tuple[Path, Log], tmp_path: Path
):
    log = Log()
    run(training(colors, tmp_path, val_every=2), log)
    assert log.values["train/loss", 1] == plain[1].values["train/loss", 1]
    assert log.values["train/loss", 3] != plain[1].values["train/loss", 3]
    assert [step for name, step in log.values if name == "train/alignment"] == [1, 2, 3, 4]
    assert {name for name, _ in log.values} == {name for name, _ in plain[1].values} | {"train/alignment"}
    assert not same_weights(tmp_path, plain[0])


def test_the_validation_loss_is_the_denoising_loss_alone(colors: Config):
    val = build_components(colors).val
    net = initial_state(aligned(colors, encoder="none"), torch.device("cpu")).net
    module, inputs, plan = a_step(colors)
    module(*inputs, plan)
    assert validate(module.denoiser, val, colors) == validate(EDM(net, 0.5), val, colors)


def test_tokens_come_to_tell_what_the_encoder_sees(colors: Config, tmp_path: Path):
    log = Log()
    schedule = dataclasses.replace(colors.schedule, type="constant")
    run(training(dataclasses.replace(colors, schedule=schedule), tmp_path, steps=40, sample_every=0), log)
    assert log.values["train/alignment", 1] < 0.2
    assert log.values["train/alignment", 40] > 0.9


@pytest.mark.parametrize("stop", [1, 3])
def test_a_killed_run_resumes_bit_for_bit(colors: Config, tmp_path: Path, stop: int):
    straight, again = Log(), Log()
    run(training(colors, tmp_path / "whole", steps=6, checkpoint_every=2), straight)
    with pytest.raises(KeyboardInterrupt):
        run(training(colors, tmp_path / "broken", steps=6, checkpoint_every=2), Log(kill_at=stop))
    run(training(colors, tmp_path / "broken", steps=6, checkpoint_every=2), again)
    assert again.values
    assert all(straight.values[key] == value for key, value in again.values.items())
    last = "checkpoints/step_00000006/"
    for name in ("model.safetensors", f"{last}weights.safetensors", f"{last}alignment.safetensors"):
        assert same_weights(tmp_path / "whole", tmp_path / "broken", name)
    projector = load_file(tmp_path / "whole" / f"{last}alignment.safetensors")
    fresh = build_alignment(colors.alignment, colors.model, colors.seed).state_dict()
    assert projector.keys() == fresh.keys()
    assert not any(torch.equal(projector[name], fresh[name]) for name in fresh), "it never learned"


def test_the_projector_stays_out_of_what_is_sampled_from(colors: Config, plain: tuple[Path, Log], tmp_path: Path):
    run(training(colors, tmp_path))
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(plain[0] / "model.safetensors").keys()


def test_accumulation_gives_the_same_update(colors: Config, tmp_path: Path):
    logs = []
    for parts in (1, 4):
        logs.append(Log())
        run(training(colors, tmp_path / str(parts), steps=3, accumulation=parts), logs[-1])
    assert logs[0].values.keys() == logs[1].values.keys()
    for key, value in logs[0].values.items():
        assert value == pytest.approx(logs[1].values[key], rel=5e-5)


def test_clipping_and_weight_decay_take_in_the_projector(colors: Config):
    config = dataclasses.replace(colors, optimizer=dataclasses.replace(colors.optimizer, weight_decay=0.5))
    data, accelerator = build_components(config).train, Accelerator(cpu=True)
    state = initial_state(config, torch.device("cpu"))
    grouped = [p for group in state.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in state.parameters()}
    module, order = TrainingLoss(EDM(state.net, 0.5), state.alignment), BatchSampler(len(data), 8, 0)
    batch = draw_batch(config, 0, data, order, state.net)
    module(*batch.arguments())[0].backward()
    gradients = [p.grad.norm() for p in state.parameters() if p.grad is not None]
    state.optimizer.zero_grad()
    readings = optimizer_step(config, 1e-3, batch, module, state, accelerator)
    torch.testing.assert_close(readings["grad_norm"], torch.stack(gradients).norm())


def test_each_parameter_has_its_own_stream(colors: Config):
    one = build_alignment(colors.alignment, colors.model, 3).state_dict()
    same = build_alignment(colors.alignment, colors.model, 3).state_dict()
    other = build_alignment(colors.alignment, colors.model, 4).state_dict()
    wide = build_alignment(dataclasses.replace(colors.alignment, hidden=48), colors.model, 3)
    assert isinstance(wide, PatchAlignment)
    assert [tuple(wide.projector[i].weight.shape) for i in (0, 2, 4)] == [(48, 32), (48, 48), (6, 48)]
    for name, tensor in one.items():
        assert torch.equal(tensor, same[name])
        assert torch.equal(tensor, other[name]) == name.endswith("bias")
    assert not torch.equal(one["projector.0.weight"], one["projector.2.weight"])
    bound = (6 / (32 + 32)) ** 0.5  # Xavier-uniform, as REPA's code has it
    assert 0.95 * bound < one["projector.0.weight"].abs().max() <= bound


def test_the_projector_counts_as_flops_and_not_as_parameters(colors: Config):
    plain = aligned(colors, encoder="none")
    assert isinstance(build_alignment(plain.alignment, plain.model, 0), NoAlignment)
    macs = 4 * (32 * 48 + 48 * 48 + 48 * 6)  # 4 of 16 patches are kept
    images = colors.training.steps * colors.training.batch_size
    added = budget.training_flops(aligned(colors, hidden=48)) - budget.training_flops(plain)
    assert added == 3 * 2 * macs * images
    assert budget.cost_facts(colors)["params"] == cost.parameters(colors.model)
    extra = budget.trained_parameters(aligned(colors, hidden=48)) - cost.parameters(colors.model)
    assert extra == 32 * 48 + 48 * 48 + 48 * 6 + 48 + 48 + 6


def test_features_are_computed_once_and_are_the_encoders(colors: Config, tmp_path: Path):
    config = dataclasses.replace(colors, cache_dir=str(tmp_path))
    before = Colors.calls
    first = build_components(config).train.targets
    calls = Colors.calls
    second = build_components(aligned(config, weight=0.1, block=2)).train.targets
    assert calls > before
    assert Colors.calls == calls
    images = build_dataset(config.data, "train")
    rows = np.array([5, 0, 63, 95])
    expected = Colors(4, "cpu").encode(torch.from_numpy(np.stack([images[int(i)].image for i in rows])))
    for targets in (first, second):
        assert targets.features.shape == (96, 16, 6)
        assert isinstance(targets.features, np.memmap)
        assert targets.batch(rows).dtype == torch.float16
        torch.testing.assert_close(targets.batch(rows).float(), expected, rtol=1e-3, atol=1e-3)
    assert len([path for path in (tmp_path / "patches").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize(("seed", "encoder", "side"), [(1, Colors, 4), (0, Shades, 4), (0, Colors, 2)])
def test_other_data_encoders_and_grids_have_features_of_their_own(
    colors: Config, tmp_path: Path, seed: int, encoder: type[Colors], side: int
):
    def features(seed: int, encoder: type[Colors], side: int) -> np.ndarray:
        data = dataclasses.replace(colors.data, train_size=8, seed=seed)
        return encode_targets(build_dataset(data, "train"), encoder(side, "cpu"), tmp_path).features

    before = features(0, Colors, 4)
    other = features(seed, encoder, side)
    assert other.shape == (8, side**2, 6)
    assert not np.array_equal(before, other)
    assert np.array_equal(before, features(0, Colors, 4))


def test_a_broken_encoding_leaves_nothing_behind(colors: Config, tmp_path: Path):
    images = build_dataset(dataclasses.replace(colors.data, train_size=8), "train")
    with pytest.raises(ConfigError, match=r"'alignment.encoder': Huge returns features that are not finite"):
        encode_targets(images, Huge(4, "cpu"), tmp_path)
    with pytest.raises(ConfigError, match=r"Crooked returns .*\(8, 15, 6\)"):
        encode_targets(images, Crooked(4, "cpu"), tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize(("side", "grid"), [(4, 7), (8, 7), (10, 14), (16, 14), (32, 28), (64, 56)])
def test_lite0_gives_the_map_nearest_to_the_grid(side: int, grid: int):
    encoder = Lite0Patches(side, "cpu")
    assert 224 // LITE0_MAPS[encoder.map][0] == grid
    assert encoder.fingerprint != Lite0Patches(224, "cpu").fingerprint


def test_lite0_features_are_the_networks_own():
    """On a grid as fine as the feature map, nothing is resized: values are equal patch by patch."""
    images = torch.randint(0, 256, (3, 224, 224, 3), generator=generator(0, "images"), dtype=torch.uint8)
    maps = build_lite0().forward_intermediates(images.permute(0, 3, 1, 2) / 127.5 - 1, intermediates_only=True)
    for index, (stride, channels) in enumerate(LITE0_MAPS[2:], start=2):
        encoder = Lite0Patches(224 // stride, "cpu")
        assert (encoder.map, encoder.width) == (index, channels) == (index, maps[index].shape[1])
        found = encoder.encode(images).view(3, 224 // stride, 224 // stride, channels)
        torch.testing.assert_close(found.permute(0, 3, 1, 2), maps[index], rtol=1e-3, atol=1e-3)


def test_scoring_a_run_again_computes_no_patch_features(colors: Config, tmp_path: Path):
    config = dataclasses.replace(colors, cache_dir=str(tmp_path / "cache"))
    run(training(config, tmp_path / "run", steps=1))
    config = dataclasses.replace(config, cache_dir=str(tmp_path / "other"), output_dir=str(tmp_path / "run"))
    calls = Colors.calls
    evaluate_run(tmp_path / "run", config)
    assert Colors.calls == calls


def test_settings_survive_and_older_files_are_read(colors: Config, tmp_path: Path):
    save_config(colors, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == colors
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del values["alignment"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(values))
    assert load_config(tmp_path / "old.yaml").alignment.encoder == "none"
    assert trial_key(colors) != trial_key(aligned(colors, weight=0.4)) != trial_key(aligned(colors, block=2))


def test_the_default_block_is_early():
    assert [AlignmentConfig().block_of(depth) for depth in (1, 2, 4, 16, 28)] == [1, 1, 1, 5, 9]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block": 3}, ["'alignment.block' is 3", "1 to 2", "nearest is 2"]),
        ({"block": 0}, ["'alignment.block' is 0", "nearest is 1"]),
        ({"encoder": "efficientnet-lite"}, ["'alignment.encoder'", f"did you mean '{LITE0}'"]),
        ({"weight": -0.1}, ["'alignment.weight' is -0.1"]),
        ({"weight": float("nan")}, ["'alignment.weight' is nan"]),
        ({"hidden": 0}, ["'alignment.hidden' is 0"]),
    ],
)
def test_mistakes_are_named(colors: Config, change: dict, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        aligned(colors, **change)
    for word in words:
        assert word in str(caught.value)


def test_a_plugin_that_is_not_listed_is_rejected(colors: Config):
    with pytest.raises(ConfigError, match=r"'alignment\.encoder' is 'nowhere\.Encoder'.*'plugins'"):
        build_components(aligned(colors, encoder="nowhere.Encoder"))


def test_a_plan_measures_the_projector_too(colors: Config, monkeypatch: pytest.MonkeyPatch):
    """If the network has a single block, that block is aligned."""
    from sweeps.planning import throughput

    monkeypatch.setattr(throughput, "MEASURE_SECONDS", 1e-6)
    wide = aligned(colors, block=2, hidden=4096)
    narrow, broad = (measure_seconds_per_image(config) for config in (aligned(wide, hidden=1), wide))
    assert narrow is not None
    assert broad is not None
    assert broad > 2 * narrow


def test_a_launch_prepares_the_features_of_every_arm(colors: Config, tmp_path: Path):
    config = dataclasses.replace(colors, cache_dir=str(tmp_path))
    (trial, *_) = plan_trials(load_study("alignment", "smoke"), [])
    arms = [dataclasses.replace(trial, config=c) for c in (aligned(config, encoder="none"), config)]
    before = Colors.calls
    prepare_trials(arms, tmp_path / "runs")
    assert Colors.calls > before


@pytest.mark.slow
def test_the_study_runs(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["study=alignment", "scale=smoke", f"cache_dir={cache_dir}", "workers=1"]) == 0
    assert "align_0.5" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("microdit/alignment")
    assert experiment is not None
    trials = client.search_runs([experiment.experiment_id], "tags.`microdit.role` = 'trial'")
    curves = {r.info.run_name: client.get_metric_history(r.info.run_id, "train/alignment") for r in trials}
    assert {name: len(points) for name, points in curves.items()} == {"none/seed0": 0, "align_0.5/seed0": 4}
    assert all(run.info.status == "FINISHED" and "final/clip_fd" in run.data.metrics for run in trials)
