"""Test starting from another run's optimizer state: restoring, identification and rejection."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from microdit.cli.main import main
from microdit.common.errors import CheckpointError, ConfigError
from microdit.config.identity import training_key
from microdit.config.schema import Config, load_config, save_config
from microdit.training.optim.init_optimizer import check_initial_optimizer
from microdit.training.trainer import initial_state
from sweeps.config.hydra_compose import compose_config

SMALL = ("scale=smoke", "data.train_size=16", "data.val_size=8", "evaluation.samples=0", "training.batch_size=4")


@pytest.fixture(scope="module")
def train(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a run of smoke size through the command and return its folder."""

    def run(*words: str) -> Path:
        out = tmp_path_factory.mktemp("chain") / "run"
        config = compose_config([*SMALL, f"output_dir={out}", f"cache_dir={cache_dir}", *words])
        save_config(config, out.parent / "config.yaml")
        assert main(["train", str(out.parent / "config.yaml")]) == 0
        return out

    return run


@pytest.fixture(scope="module")
def source(train: Callable[..., Path]) -> Path:
    """Return a finished run of three steps."""
    return train("training.steps=3")


def following(source: Path, **changes: Any) -> Config:
    """Return the configuration of another run that starts from `source` with its optimizer."""
    config = load_config(source / "config.yaml")
    training = dataclasses.replace(config.training, init=str(source), init_optimizer=True)
    return dataclasses.replace(config, output_dir=str(source.parent / "next"), training=training, **changes)


def stored_moments(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return each network parameter's state in the last checkpoint, read from its files without our reader."""
    folder = sorted((run / "checkpoints").iterdir())[-1]
    tensors = load_file(folder / "optimizer.safetensors")
    text = (folder / "optimizer.json").read_text()
    groups = dict(json.loads(text)["pairs"])["param_groups"]
    found = {}
    for group in (dict(one["pairs"]) for one in groups):
        for name, number in zip(group["param_names"], group["params"], strict=True):
            state = {key.split(".")[-1]: value for key, value in tensors.items() if key.startswith(f"state.{number}.")}
            found[name.removeprefix("net.")] = state
    return found


def restored_moments(config: Config) -> dict[str, dict[str, torch.Tensor]]:
    """Return each network parameter's state before the first step."""
    state = initial_state(config, torch.device("cpu"))
    return {name: dict(state.optimizer.state[parameter]) for name, parameter in state.net.named_parameters()}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_come_from_the_last_checkpoint(kind: str, train: Callable[..., Path]) -> None:
    run = train("training.steps=3", f"optimizer.type={kind}")
    config, stored = following(run), stored_moments(run)
    check_initial_optimizer(config)
    restored = restored_moments(config)
    assert restored.keys() == stored.keys()
    for name, state in restored.items():
        assert state.keys() == stored[name].keys() != set()
        assert all(torch.equal(value, stored[name][key]) for key, value in state.items()), name
        moments = [key for key in state if state[key].ndim]
        assert moments
        assert all(state[key].shape == stored[name][key].shape for key in moments)
    assert any(value.any() for value in restored["blocks.0.attn.qkv.weight"].values())


def test_without_the_setting_the_optimizer_is_fresh(source: Path) -> None:
    config = following(source)
    fresh = dataclasses.replace(config, training=dataclasses.replace(config.training, init_optimizer=False))
    assert not any(restored_moments(fresh).values())


def test_step_counts_continue_and_the_learning_rate_is_its_own(source: Path, train: Callable[..., Path]) -> None:
    run = train(
        *("training.steps=2", f"training.init={source}", "training.init_optimizer=true"),
        *("optimizer.lr=5e-4", "optimizer.weight_decay=0.3", "schedule.type=constant"),
    )
    assert {float(state["step"]) for state in stored_moments(run).values()} == {5.0}  # 3 there and 2 here
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert json.loads((newest / "state.json").read_text())["step"] == 2
    groups = dict(json.loads((newest / "optimizer.json").read_text())["pairs"])["param_groups"]
    for group in (dict(one["pairs"]) for one in groups):
        assert (group["lr"], group["weight_decay"]) == (5e-4, 0.3)


def test_the_state_is_identified_by_its_content(source: Path, tmp_path: Path) -> None:
    config = following(source)
    off = dataclasses.replace(config, training=dataclasses.replace(config.training, init_optimizer=False))
    key = training_key(config)
    assert key != training_key(off)
    moved = shutil.copytree(source, tmp_path / "moved")
    elsewhere = dataclasses.replace(config, training=dataclasses.replace(config.training, init=str(moved)))
    assert training_key(elsewhere) == key
    path = sorted((moved / "checkpoints").iterdir())[-1] / "optimizer.safetensors"
    tensors = load_file(path)
    next(value for name, value in tensors.items() if name.endswith("exp_avg"))[0] += 1
    save_file(tensors, path)
    assert training_key(elsewhere) != key


def without_checkpoints(run: Path) -> Path:
    shutil.rmtree(run / "checkpoints")
    return run


def without_optimizer(run: Path) -> Path:
    (sorted((run / "checkpoints").iterdir())[-1] / "optimizer.safetensors").unlink()
    return run


def of_an_older_version(run: Path) -> Path:
    (sorted((run / "checkpoints").iterdir())[-1] / "optimizer.pt").write_bytes(b"a pickle")
    return run


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: run / "model.safetensors", "a file of weights alone, without an optimizer"),
        (without_checkpoints, "has weights but no checkpoints, so no optimizer"),
        (without_optimizer, "has no optimizer.safetensors"),
        (of_an_older_version, "written by an older version as a pickle"),
    ],
)
def test_a_source_without_an_optimizer_is_rejected_before_any_computation(
    spoil: Callable[[Path], Path],
    words: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    init = spoil(shutil.copytree(source, tmp_path / "source"))
    config = following(source)
    training = dataclasses.replace(config.training, init=str(init))
    save_config(dataclasses.replace(config, training=training, output_dir=str(tmp_path / "out")), tmp_path / "c.yaml")
    assert main(["train", str(tmp_path / "c.yaml")]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert f"'training.init_optimizer' is true, but 'training.init' is '{init}'" in message
    assert not (tmp_path / "out").exists()


def test_another_optimizer_is_rejected(source: Path) -> None:
    config = following(source)
    muon = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, type="muon"))
    with pytest.raises(ConfigError, match=r"a run with 'optimizer\.type' adamw, and it is muon here"):
        check_initial_optimizer(muon)


def test_another_network_is_rejected_by_name(source: Path) -> None:
    config = following(source)
    with pytest.raises(CheckpointError, match=r"exp_avg of .* is \(32,.* there, and the parameter is \(64,.* here"):
        check_initial_optimizer(dataclasses.replace(config, model=dataclasses.replace(config.model, width=64)))
    with pytest.raises(CheckpointError, match=r"blocks\.2\..* is only here"):
        check_initial_optimizer(dataclasses.replace(config, model=dataclasses.replace(config.model, depth=3)))


def test_a_damaged_state_is_rejected_by_name(source: Path, tmp_path: Path) -> None:
    run = shutil.copytree(source, tmp_path / "source")
    path = sorted((run / "checkpoints").iterdir())[-1] / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    config = following(source)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, init=str(run)))
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: wrong checksum"):
        initial_state(config, torch.device("cpu"))
    path.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: can't be read"):
        check_initial_optimizer(config)


def test_the_setting_needs_initial_weights() -> None:
    with pytest.raises(ConfigError, match=r"'training\.init_optimizer' is true, but 'training\.init' is null"):
        compose_config(["scale=smoke", "training.init_optimizer=true"])
