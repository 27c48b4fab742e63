"""What a plan says of time and money, and what its FLOPs count."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from microdit.budget import forward_flops, text_tokens, training_flops
from microdit.config import Config
from microdit.encoders.text import TextConfig, build_text_encoder
from microdit.model import cost
from sweeps.cli import main
from sweeps.estimate import accelerator_seconds, load_accelerator, measure_seconds_per_image


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
def test_text_tokens_of_what_is_not_there_are_clips(smoke_config: Config, path: str) -> None:
    assert text_tokens(with_text(smoke_config, path)) == 77


def test_time_on_an_accelerator_is_flops_over_the_peak_it_reaches() -> None:
    h100 = load_accelerator("h100")
    assert accelerator_seconds(h100.tflops * 1e12, h100, 0.5) == 2.0


def test_a_step_of_this_machine_is_measured(smoke_config: Config) -> None:
    seconds = measure_seconds_per_image(smoke_config)
    assert seconds is not None
    assert 0 < seconds < 5


def test_a_plan_tells_time_and_money(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["accelerator=a100", "utilisation=0.5", "usd_per_hour=1000000000000"]
    assert main(["plan", "study=masking_ratio", "scale=smoke", *words]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    header = next(line for line in rows.values() if "ms/image" in line)
    assert "a100" in header
    assert float(rows["naive_75"][2]) > 0, "ms an image here"
    usd = {arm: float(rows[arm][-1].replace(",", "")) for arm in ("none", "naive_75", "deferred_75", "total")}
    assert usd["none"] > usd["naive_75"] > 0
    assert sum(usd.values()) - usd["total"] == pytest.approx(usd["total"], rel=1e-4)


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("accelerator=h10", ["accelerators.yaml", "'h10'", "'h100'"]),
        ("utilisation=2", ["utilisation=2", "at most 1"]),
        ("usd_per_hour=-1", ["usd_per_hour=-1", "at least 0"]),
        ("measure=perhaps", ["measure=perhaps", "true or false"]),
    ],
)
def test_mistakes_are_named(word: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "study=masking_ratio", "scale=smoke", word]) == 2
    told = capsys.readouterr().err
    for part in parts:
        assert part in told
