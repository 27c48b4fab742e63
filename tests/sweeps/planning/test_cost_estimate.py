"""Test the time, price and FLOPs that a plan reports."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from changed_config import with_changes
from launching import error_line

from microdit.common.errors import ConfigError
from microdit.config.schema import Config
from microdit.encoders.config import TextConfig
from microdit.encoders.text import build_text_encoder
from microdit.model.cost import network as cost
from microdit.model.masking.registry import MASKING_METHODS
from microdit.pipeline.cost import forward_flops, text_tokens, training_flops
from sweeps.cli import main
from sweeps.config.study import load_study
from sweeps.planning import throughput, throughput_cache
from sweeps.planning.cost_estimate import (
    ACCELERATORS,
    Accelerator,
    EstimateOptions,
    accelerator_seconds,
    load_accelerator,
    plan_estimates,
    total,
)
from sweeps.planning.trials import Trial, plan_trials

PLAN = ["plan", "study=masking_ratio", "scale=smoke"]
ARMS = ("none", "naive_75", "deferred_75", "maskdit_75")


@pytest.fixture
def trials() -> list[Trial]:
    return plan_trials(load_study("masking_ratio", "smoke", (0, 1)), [])


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, list[str]], str]:
    """Return rows of the second table by their first cell, and everything printed after it."""
    assert main([*PLAN, *words]) == 0
    text = capsys.readouterr().out
    lines = text[text.index("\narm  ", text.index("PFLOPs to go")) + 1 :].splitlines()
    end = lines.index("")
    rows = [line.split() for line in lines[2:end]]
    return {row[0]: row[1:] for row in rows}, "\n".join([lines[0], *lines[end + 1 :]])


def with_text(config: Config, path: object) -> Config:
    return dataclasses.replace(config, text=TextConfig(path=str(path)))


def test_text_tokens_are_those_of_the_encoder(smoke_config: Config) -> None:
    assert text_tokens(smoke_config) == build_text_encoder(smoke_config.text).length == 32
    assert forward_flops(smoke_config) == cost.forward_flops(smoke_config.model, 32)
    images = smoke_config.training.steps * smoke_config.training.batch_size
    assert training_flops(smoke_config) == 3 * images * cost.forward_flops(smoke_config.model, 32)


@pytest.mark.parametrize(
    ("text_cfg", "tokens"), [({"context_length": 13}, 13), ({}, 77), ({"context_length": "x"}, 77), (None, 77)]
)
def test_text_tokens_of_a_folder_need_no_weights(
    smoke_config: Config, tmp_path: Path, text_cfg: object, tokens: int
) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text_cfg}}))
    assert text_tokens(with_text(smoke_config, tmp_path)) == tokens


@pytest.mark.parametrize("path", ["/nowhere", "REQUIRED"])
def test_text_tokens_of_a_missing_encoder_are_clips(smoke_config: Config, path: str) -> None:
    assert text_tokens(with_text(smoke_config, path)) == 77


def test_every_accelerator_of_the_file_can_be_named() -> None:
    names = [line.partition(":")[0] for line in ACCELERATORS.read_text().splitlines() if not line.startswith("#")]
    assert {"h100", "h200", "a100", "l40s", "l4", "rtx4090", "v100"} <= set(names)
    for name in names:
        accelerator = load_accelerator(name)
        assert 50 < accelerator.tflops < 5000
        assert 0 < accelerator.usd_per_hour < 20
    with pytest.raises(ConfigError) as caught:
        load_accelerator("h10")
    assert str(ACCELERATORS) in str(caught.value)
    assert "'h100'" in str(caught.value)


def test_accelerator_seconds_are_flops_divided_by_the_reached_rate() -> None:
    assert accelerator_seconds(3.6e18, Accelerator("x", 1000.0, 2.0), 0.5) == pytest.approx(7200)


def test_rows_count_what_is_still_to_run(trials: list[Trial]) -> None:
    options = EstimateOptions(Accelerator("x", 1e-6, 3.0), 0.5, measure=False)
    done = {trial.key for trial in trials if trial.arm == "none" or (trial.arm, trial.seed) == ("naive_75", 0)}
    rows = {row.arm: row for row in plan_estimates(trials, done, options)}
    assert {arm: row.count for arm, row in rows.items()} == {
        "none": 0,
        "naive_75": 1,
        "deferred_75": 2,
        "maskdit_75": 2,
    }
    assert (rows["none"].seconds, rows["none"].accelerator_seconds, rows["none"].usd) == (0, 0, 0)
    flops = next(training_flops(trial.config) for trial in trials if trial.arm == "deferred_75")
    deferred = rows["deferred_75"]
    assert deferred.seconds is None
    assert deferred.accelerator_seconds == pytest.approx(2 * flops / (1e6 * 0.5))
    assert deferred.usd == pytest.approx(3.0 * deferred.accelerator_seconds / 3600)
    everything = total(list(rows.values()))
    assert everything.count == 5
    assert everything.seconds is None
    assert everything.usd == pytest.approx(deferred.usd + rows["naive_75"].usd + rows["maskdit_75"].usd)


def test_each_network_is_measured_once(trials: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def measure(config: Config) -> float:
        seen.append(config)
        return 0.5

    monkeypatch.setattr("sweeps.planning.measure_seconds_per_image", measure)
    other = dataclasses.replace(
        trials[0],
        arm="slower",
        config=dataclasses.replace(trials[0].config, optimizer=dataclasses.replace(trials[0].config.optimizer, lr=0.5)),
    )
    done = {trial.key for trial in trials if trial.arm == "none"}
    rows = plan_estimates([*trials, other], done, EstimateOptions(load_accelerator("l4")))
    assert len(seen) == 3, "a finished arm and a second learning rate cost no measurement"
    images = trials[0].config.training.steps * trials[0].config.training.batch_size
    assert {row.arm: row.seconds for row in rows}["deferred_75"] == pytest.approx(2 * images * 0.5)
    assert total(rows).seconds == pytest.approx(sum(row.seconds or 0 for row in rows))


@pytest.mark.parametrize("words", [{}, {"precision": "bf16"}, {"batch_size": 1}])
def test_a_step_is_timed_and_threads_are_put_back(smoke_config: Config, words: dict) -> None:
    config = dataclasses.replace(smoke_config, training=dataclasses.replace(smoke_config.training, **words))
    threads = torch.get_num_threads()
    seconds = throughput.measure_seconds_per_image(config)
    assert seconds is not None
    assert 0 < seconds < 1
    assert torch.get_num_threads() == threads


def with_steps(config: Config, **training: object) -> Config:
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def test_the_trial_s_own_step_is_timed(smoke_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []
    true_train = throughput.train

    def train(config: Config, *arguments: object) -> object:
        seen.append(config)
        return true_train(config, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(throughput, "train", train)
    config = with_steps(smoke_config, accumulation=2, precision="bf16", caption_dropout=0.3)
    times = throughput.measure_steps(config)
    assert times is not None
    assert 0 < times.step <= times.first
    (used,) = seen
    same = ("batch_size", "accumulation", "precision", "compile", "clip", "draws", "caption_dropout")
    assert [getattr(used.training, name) for name in same] == [getattr(config.training, name) for name in same]
    assert (used.model, used.optimizer) == (config.model, config.optimizer)
    assert not Path(used.output_dir).exists(), "its folder was temporary"


@pytest.mark.parametrize(
    ("flops", "depths"),
    [
        (1e12, [1, 1]),  # one image takes seconds: from steps of a single block
        (1e10, [5, 5]),  # the batch takes seconds: from steps of fewer images
    ],
)
def test_a_slow_step_is_extrapolated(
    smoke_config: Config, monkeypatch: pytest.MonkeyPatch, flops: float, depths: list[int]
) -> None:
    deep = dataclasses.replace(smoke_config, model=dataclasses.replace(smoke_config.model, depth=5))
    deep = with_steps(deep, batch_size=64)
    seen: list[Config] = []

    def time_steps(config: Config) -> throughput.StepTimes:
        seen.append(config)
        step = 1.0 * config.training.batch_size + 0.5
        return throughput.StepTimes(step, step)

    monkeypatch.setattr(throughput, "time_steps", time_steps)
    scale = flops / throughput.image_flops(deep)
    true_flops = throughput.image_flops
    monkeypatch.setattr(throughput, "image_flops", lambda config: scale * true_flops(config))
    times = throughput.measure_steps(deep)
    assert [config.model.depth for config in seen] == depths
    passes = true_flops(deep) / true_flops(seen[0])
    update = throughput.trained_parameters(deep) / throughput.trained_parameters(seen[0])
    assert times is not None
    assert times.step == pytest.approx(64 * passes + 0.5 * update)


@pytest.mark.parametrize("method", MASKING_METHODS)
def test_every_masking_method_has_a_network_of_one_block(smoke_config: Config, method: str) -> None:
    ratio = 0.0 if method == "none" else 0.5
    changes = {"model.masking.method": method, "model.masking.ratio": ratio, "model.depth": 5}
    config = with_changes(smoke_config, changes)
    assert throughput.of_one_block(config).model.depth == 1


def test_a_lack_of_gpu_memory_names_the_arm(trials: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(config: Config) -> float:
        if config.model.masking.method == "naive":
            raise ConfigError("too large")
        return 0.5

    monkeypatch.setattr("sweeps.planning.measure_seconds_per_image", measure)
    with pytest.raises(ConfigError, match=r"^arm 'naive_75': too large$"):
        plan_estimates(trials, (), EstimateOptions(load_accelerator("l4")))


@pytest.mark.parametrize(
    "changes",
    [
        {"compile": True},
        {"draws": "device"},
        {"precision": "bf16"},
        {"activation_checkpointing": True},
        {"precision": "bf16", "residual": "bf16"},
    ],
)
def test_other_ways_to_train_are_measured_again(
    changes: dict, trials: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Config] = []

    def measure(config: Config) -> float:
        seen.append(config)
        return 0.5

    monkeypatch.setattr("sweeps.planning.measure_seconds_per_image", measure)
    first = trials[0]
    other = dataclasses.replace(first, arm="other", config=with_steps(first.config, **changes))
    plan_estimates([first, other], (), EstimateOptions(load_accelerator("l4")))
    assert len(seen) == 2


def test_a_measured_speed_is_stored(smoke_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def measure(config: Config) -> float:
        seen.append(config)
        return 1.0 / len(seen)

    monkeypatch.setattr("sweeps.planning.measure_seconds_per_image", measure)
    config = dataclasses.replace(smoke_config, cache_dir=str(tmp_path))
    speeds = [throughput_cache.cached_seconds_per_image(config) for _ in range(2)]
    assert speeds == [1 / 3, 1 / 3]  # the fastest of three
    muon = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, type="muon"))
    assert throughput_cache.cached_seconds_per_image(muon) == 1 / 6


def test_a_lack_of_gpu_memory_names_the_setting_to_change(
    smoke_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(throughput, "train", train)
    with pytest.raises(ConfigError, match=r"a step on 4 images .* raise 'training.accumulation' \(2\)"):
        throughput.time_steps(with_steps(smoke_config, accumulation=2))


def test_a_network_that_memory_cannot_hold_is_not_measured(
    smoke_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "choose_device", lambda config: torch.device("cpu"))
    monkeypatch.setattr(throughput, "TRAIN_BYTES", 1e12)
    assert throughput.measure_seconds_per_image(smoke_config) is None


def test_a_plan_prints_time_and_price(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows, note = plan(capsys, "training.steps=4000", "cost.usd_per_hour=7", "workers=2")
    assert list(rows) == [*ARMS, "total"]
    assert all(float(rows[arm][1]) > 0 and float(rows[arm][2]) > 0 for arm in ARMS)
    assert float(rows["total"][2]) == pytest.approx(sum(float(rows[arm][2]) for arm in ARMS), rel=0.02)
    for word in ("h100 hours", "0.35", "3.00 USD", "scoring", "encoding", "validation", "not included", "2 at a time"):
        assert word in note
    assert not list(tmp_path.iterdir())


def test_a_plan_takes_other_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["training.steps=4000000", "measure=false", "accelerator=l4", "utilisation=0.1", "usd_per_hour=10"]
    rows, note = plan(capsys, *words)
    assert "l4 hours" in note
    assert "measure=false" in note
    for arm in (*ARMS, "total"):
        assert rows[arm][1:3] == ["-", "-"]
        assert float(rows[arm][4]) == pytest.approx(10 * float(rows[arm][3]), rel=0.02, abs=0.006)
    cheaper, _ = plan(capsys, *words[:2], "accelerator=l4", "utilisation=0.2", "usd_per_hour=0")
    assert float(cheaper["total"][3]) == pytest.approx(float(rows["total"][3]) / 2, rel=0.02)
    assert cheaper["total"][4] == "0.00"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["accelerator=h10"], ["accelerators.yaml", "'h10'", "'h100'"]),
        (["utilisation=0"], ["utilisation=0", "at most 1"]),
        (["utilisation=35"], ["utilisation=35", "at most 1"]),
        (["utilisation=.nan"], ["utilisation=.nan", "at most 1"]),
        (["utilisation=high"], ["utilisation=high", "at most 1"]),
        (["usd_per_hour=-1"], ["usd_per_hour=-1", "at least 0"]),
        (["usd_per_hour=true"], ["usd_per_hour=True", "number"]),
        (["measure=maybe"], ["measure=maybe", "true or false"]),
        (["acelerator=h100"], ["'acelerator'", "'accelerator'"]),
    ],
)
def test_wrong_assumptions_are_one_line(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*PLAN, *words, f"root={tmp_path / 'runs'}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "", "rejected before anything is printed"
    line = error_line(captured.err)
    for part in parts:
        assert part in line


@pytest.mark.parametrize("line", ["study=masking_ratio scale=smoke accelerator=l4", "train measure=false"])
def test_options_of_a_plan_are_rejected_by_other_commands(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert "is not an option of" in capsys.readouterr().err


def test_estimating_needs_no_store_and_no_torch() -> None:
    modules = "sweeps.planning.cost_estimate, sweeps.planning.throughput_cache"
    code = f"import sys, {modules}; sys.exit(bool({{'mlflow', 'optuna', 'torch'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
