"""Test starting from another run's weights: the released recipe's four phases, and rejected starts."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from microdit.cli.main import main
from microdit.common.errors import CheckpointError, ConfigError
from microdit.common.parsing import flatten
from microdit.config.identity import training_key
from microdit.config.schema import Config, load_config, save_config
from microdit.model.layers.embeddings import sincos_positions
from microdit.training.init_weights import check_initial
from microdit.training.trainer import initial_state
from sweeps.config.hydra_compose import compose_config, compose_mapping
from sweeps.config.study import load_study
from sweeps.planning.trials import plan_trials

SMALL = ("scale=smoke", "data.train_size=16", "data.val_size=8", "evaluation.samples=0", "training.batch_size=4")


@pytest.fixture(scope="module")
def phases(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the four phases at smoke size, each from the one before, trained through the command."""
    root = tmp_path_factory.mktemp("phases")
    start: list[str] = []
    for phase in ("phase1", "phase2", "phase3", "phase4"):
        words = [*SMALL, f"recipe={phase}", f"output_dir={root / phase}", f"cache_dir={cache_dir}", *start]
        save_config(compose_config(words), root / f"{phase}.yaml")
        assert main(["train", str(root / f"{phase}.yaml")]) == 0
        start = [f"training.init={root / phase}"]
    return root


def test_each_phase_resumes_from_the_one_before(phases: Path) -> None:
    configs = [load_config(phases / f"phase{number}" / "config.yaml") for number in (1, 2, 3, 4)]
    assert [c.training.steps for c in configs] == [17, 2, 3, 1]
    assert [c.model.masking.ratio for c in configs] == [0.75, 0.0, 0.75, 0.0]
    assert [c.data.resolution for c in configs] == [32, 32, 64, 64]
    assert [(c.model.input_size, c.model.pos_interp_scale) for c in configs] == [(8, 1.0)] * 2 + [(16, 2.0)] * 2
    for before, config in zip(configs, configs[1:], strict=False):
        weights = load_file(Path(before.output_dir) / "model.safetensors")
        assert float(weights.pop("sigma_data")) == 0.9
        state = initial_state(config, torch.device("cpu"))
        for net in (state.net, state.ema.module, state.averaged):
            assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
        assert bool(state.optimizer.state_dict()["state"]) == config.training.init_optimizer
    assert [c.training.init_optimizer for c in configs] == [False, True, False, True]


# Values of the released configurations of the four phases. The step counter of phases 2 and 4 continues from the
# phase before (`max_duration` 280,000 and 55,000 batches); steps are counted per phase here.
RELEASED: dict[str, dict[str, object]] = {
    "phase1": {
        "data.resolution": 256,
        "model.input_size": 32,
        "model.pos_interp_scale": 1.0,
        "model.masking.ratio": 0.75,
        "training.steps": 250_000,
        "optimizer.lr": 2.4e-4,
        "schedule.type": "cosine",
        "schedule.final_ratio": 0.33,
        "schedule.warmup_steps": 2500,
        "training.clip": 0.25,
        "diffusion.p_mean": -0.6,
        "diffusion.p_std": 1.2,
        "training.ema.decay": 0.0,
        "training.init": None,
        "training.init_optimizer": False,
    },
    "phase2": {
        "data.resolution": 256,
        "model.input_size": 32,
        "model.pos_interp_scale": 1.0,
        "model.masking.ratio": 0.0,
        "training.steps": 30_000,
        "optimizer.lr": 8e-5,
        "schedule.type": "constant",
        "schedule.warmup_steps": 0,
        "training.clip": 0.25,
        "diffusion.p_mean": -0.6,
        "diffusion.p_std": 1.2,
        "training.ema.decay": 0.0,
        "training.init": "REQUIRED",
        "training.init_optimizer": True,
    },
    "phase3": {
        "data.resolution": 512,
        "model.input_size": 64,
        "model.pos_interp_scale": 2.0,
        "model.masking.ratio": 0.75,
        "training.steps": 50_000,
        "optimizer.lr": 8e-5,
        "schedule.type": "constant",
        "schedule.warmup_steps": 500,
        "training.clip": 0.5,
        "diffusion.p_mean": 0.0,
        "diffusion.p_std": 0.6,
        "training.ema.decay": 0.99975,
        "training.ema.start_step": 25_000,
        "training.init": "REQUIRED",
        "training.init_optimizer": False,
    },
    "phase4": {
        "data.resolution": 512,
        "model.input_size": 64,
        "model.pos_interp_scale": 2.0,
        "model.masking.ratio": 0.0,
        "training.steps": 5000,
        "optimizer.lr": 8e-5,
        "schedule.type": "constant",
        "schedule.warmup_steps": 0,
        "training.clip": 0.5,
        "diffusion.p_mean": 0.0,
        "diffusion.p_std": 0.6,
        "training.ema.decay": 0.9975,
        "training.ema.start_step": 1000,
        "training.init": "REQUIRED",
        "training.init_optimizer": True,
    },
}
IN_ALL_PHASES: dict[str, object] = {
    "training.batch_size": 2048,
    "training.precision": "bf16",
    "training.caption_dropout": 0.1,
    "training.unmasked_tail": 0.0,
    "model.masking.method": "deferred",
    "diffusion.sigma_data": 0.9,
    "optimizer.type": "adamw",
    "optimizer.weight_decay": 0.1,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.eps": 1e-8,
    "text.path": "hf-hub:apple/DFN5B-CLIP-ViT-H-14-378",
    "text.layer": "last",
}


@pytest.mark.parametrize("phase", RELEASED)
def test_phases_have_the_released_values_at_the_papers_scale(phase: str) -> None:
    found = flatten(compose_mapping(["scale=paper", f"recipe={phase}"], complete=False))
    wanted = IN_ALL_PHASES | RELEASED[phase]
    for key, value in wanted.items():
        expected = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        assert found[key] == expected, key


def test_phases_keep_their_proportions_at_smaller_scales() -> None:
    for phase, values in RELEASED.items():
        found = flatten(compose_mapping(["scale=gpu", f"recipe={phase}", "training.steps=2000"], complete=False))
        share = 2000 / values["training.steps"]  # type: ignore[operator]
        for key in ("schedule.warmup_steps", "training.ema.start_step"):
            if key in values:
                assert found[key] == values[key] * share, (phase, key)  # type: ignore[operator]
        decay = values["training.ema.decay"]
        memory = 1 / (1 - decay) * share if decay else 1.0  # type: ignore[operator]
        assert 1 / (1 - found["training.ema.decay"]) == pytest.approx(memory)
        assert found["training.init_optimizer"] == values["training.init_optimizer"]


def test_a_recipe_needs_initial_weights_and_can_be_overridden() -> None:
    with pytest.raises(ConfigError, match=r"give training\.init="):
        compose_config(["scale=smoke", "recipe=phase2"])
    assert compose_mapping(["scale=smoke", "recipe=phase1", "training.steps=200"])["schedule"]["warmup_steps"] == 2
    given = compose_mapping(["scale=smoke", "recipe=phase3", "data.resolution=48"], complete=False)
    assert given["data"]["resolution"] == 48


def test_an_arm_can_be_a_phase(phases: Path, tmp_path: Path) -> None:
    (tmp_path / "pay.yaml").write_text(
        "question: Does the unmasked phase pay?\nholds: nothing\nbaseline: masked\nseeds: [0]\n"
        f"overrides: {{training.init: {phases / 'phase1'}}}\n"
        "arms: {masked: {recipe: phase1}, unmasked: {recipe: phase2}}\n"
    )
    trials = plan_trials(load_study(str(tmp_path / "pay.yaml"), "smoke"), [])
    assert {trial.arm: trial.config.model.masking.ratio for trial in trials} == {"masked": 0.75, "unmasked": 0.0}


def test_a_finer_grid_spans_the_base_grid() -> None:
    base, fine = sincos_positions(16, 4, 1.0), sincos_positions(16, 8, 2.0)
    every_second = fine.view(8, 8, 16)[::2, ::2].reshape(1, 16, 16)
    assert torch.allclose(every_second, base)  # as DiT's descendants do: coordinates over the scale, from 0


def started(config: Config, init: Path | str, **changes: object) -> Config:
    training = dataclasses.replace(config.training, init=str(init))
    return dataclasses.replace(config, training=training, **changes)


def test_initial_weights_are_identified_by_content(phases: Path, smoke_config: Config, tmp_path: Path) -> None:
    moved = shutil.copytree(phases / "phase1", tmp_path / "moved")
    key = training_key(started(smoke_config, phases / "phase1"))
    assert training_key(started(smoke_config, moved)) == key
    assert training_key(started(smoke_config, moved / "model.safetensors")) == key
    weights = load_file(moved / "model.safetensors")
    weights["final_layer.linear.bias"][0] += 1
    save_file(weights, moved / "model.safetensors")
    assert len({key, training_key(started(smoke_config, moved)), training_key(smoke_config)}) == 3


def test_errors_name_tensors_and_settings_that_differ(phases: Path, smoke_config: Config, tmp_path: Path) -> None:
    start, model = phases / "phase1", smoke_config.model
    for changes, words in (
        (
            {"in_channels": 16},
            ["'model.in_channels' is 4 there and 16 here", "x_embedder.proj.weight is (32, 4, 2, 2)"],
        ),
        ({"patch_size": 4}, ["'model.patch_size' is 2 there and 4 here"]),
        ({"caption_channels": 64}, ["'model.caption_channels' is 128 there and 64 here", "y_embedder.fc1.weight"]),
        ({"depth": 3}, ["'model.depth' is 2 there and 3 here", "blocks.2.", "is only here"]),
        ({"masking": dataclasses.replace(model.masking, method="naive")}, ["patch-mixer", "mixer.", "is only there"]),
        ({"ffn": dataclasses.replace(model.ffn, type="gelu")}, ["'model.ffn'", "blocks.0.mlp"]),
    ):
        with pytest.raises(CheckpointError) as caught:
            check_initial(started(smoke_config, start, model=dataclasses.replace(model, **changes)))
        for word in ("'training.init'", "phase1/model.safetensors", *words):
            assert word in str(caught.value)
    (tmp_path / "broken.safetensors").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors: can't be read as weights"):
        check_initial(started(smoke_config, tmp_path / "broken.safetensors"))


def test_missing_initial_weights_are_reported_before_any_work(
    phases: Path, smoke_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights.pt").write_bytes(b"")
    unfinished = tmp_path / "unfinished"
    save_config(smoke_config, unfinished / "config.yaml")
    (tmp_path / "empty").mkdir()
    plain = load_file(phases / "phase1" / "model.safetensors")
    del plain["sigma_data"]
    save_file(plain, tmp_path / "plain.safetensors")
    for init, words in (
        (tmp_path / "nowhere", "which is missing"),
        (tmp_path / "empty", "a folder without model.safetensors"),
        (unfinished, "has it finished?"),
        (tmp_path / "weights.pt", "not a .safetensors file; convert it with `microdit import checkpoint`"),
        (tmp_path / "plain.safetensors", "set 'diffusion.sigma_data'"),
        (phases / "phase1", "this run's own output folder"),
    ):
        out = phases / "phase1" if init == phases / "phase1" else tmp_path / "run"
        save_config(started(smoke_config, init, output_dir=str(out)), tmp_path / "config.yaml")
        assert main(["train", str(tmp_path / "config.yaml")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    known = dataclasses.replace(smoke_config.diffusion, sigma_data=0.9)
    check_initial(started(smoke_config, tmp_path / "plain.safetensors", diffusion=known))
