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
