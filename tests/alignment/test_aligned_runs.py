"""Test aligned runs: unchanged draws, resuming, settings, plans, launches and the study."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from aligned_runs import Colors, Log, aligned, training
from mlflow import MlflowClient
from safetensors.torch import load_file

from microdit.alignment.loss import build_alignment
from microdit.config.identity import trial_key
from microdit.config.schema import Config, load_config, save_config
from microdit.pipeline.train_and_evaluate import run
from sweeps.cli import main
from sweeps.config.study import load_study
from sweeps.planning.prepare import prepare_trials
from sweeps.planning.throughput import measure_seconds_per_image
from sweeps.planning.trials import plan_trials


@pytest.fixture(scope="module")
def plain(smoke_config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log]:
    """Return the folder and curves of a run without alignment."""
    out, log = tmp_path_factory.mktemp("plain"), Log()
    run(training(smoke_config, out, val_every=2), log)
    return out, log


def same_weights(one: Path, other: Path, name: str = "model.safetensors") -> bool:
    ours, theirs = load_file(one / name), load_file(other / name)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("change", [{"encoder": "none"}, {"weight": 0.0}])
def test_a_run_is_unchanged_without_encoder_or_weight(
    colors: Config, plain: tuple[Path, Log], tmp_path: Path, change: dict
):
    log, before = Log(), Colors.calls
    run(training(aligned(colors, **change), tmp_path, val_every=2), log)
    assert same_weights(tmp_path, plain[0])
    assert log.values == plain[1].values
    assert not [name for name, _ in log.values if name == "train/alignment"]
    assert Colors.calls == before


def test_an_aligned_run_has_the_same_first_loss_and_one_more_curve(
    colors: Config, plain: tuple[Path, Log], tmp_path: Path
):
    log = Log()
    run(training(colors, tmp_path, val_every=2), log)
    assert log.values["train/loss", 1] == plain[1].values["train/loss", 1]
    assert log.values["train/loss", 3] != plain[1].values["train/loss", 3]
    assert [step for name, step in log.values if name == "train/alignment"] == [1, 2, 3, 4]
    assert {name for name, _ in log.values} == {name for name, _ in plain[1].values} | {"train/alignment"}
    assert not same_weights(tmp_path, plain[0])


def test_training_increases_the_alignment(colors: Config, tmp_path: Path):
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
    assert not any(torch.equal(projector[name], fresh[name]) for name in fresh), "the projector was not trained"


def test_model_weights_exclude_the_projector(colors: Config, plain: tuple[Path, Log], tmp_path: Path):
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


def test_settings_round_trip_and_older_files_are_read(colors: Config, tmp_path: Path):
    save_config(colors, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == colors
    values = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del values["alignment"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(values))
    assert load_config(tmp_path / "old.yaml").alignment.encoder == "none"
    assert trial_key(colors) != trial_key(aligned(colors, weight=0.4)) != trial_key(aligned(colors, block=2))


def test_a_plan_includes_the_projectors_time(colors: Config, monkeypatch: pytest.MonkeyPatch):
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
