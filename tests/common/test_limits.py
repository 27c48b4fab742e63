"""Test allowed values of settings; errors name the setting and the whole range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from microdit.common.errors import ConfigError
from microdit.common.limits import NOT_EMPTY, Range, check_settings


@dataclass(frozen=True)
class Settings:
    blocks: Annotated[int, Range(1, 4096)] = 4
    ratio: Annotated[float, Range(0, below=1)] = 0.5
    width: Annotated[int | None, Range(1)] = None
    scale: Annotated[float, Range(above=0, most=1e6)] = 1.0
    file: Annotated[str | None, NOT_EMPTY] = None
    split: Literal["train", "val"] = "train"
    seed: int = 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"blocks": 0}, "'part.blocks' is 0; it must be at least 1 and at most 4,096"),
        ({"blocks": 4097}, "'part.blocks' is 4097; it must be at least 1 and at most 4,096"),
        ({"ratio": 1.0}, "'part.ratio' is 1.0; it must be at least 0 and below 1"),
        ({"ratio": -0.1}, "'part.ratio' is -0.1; it must be at least 0 and below 1"),
        ({"ratio": math.nan}, "'part.ratio' is nan; it must be at least 0 and below 1"),
        ({"width": 0}, "'part.width' is 0; it must be at least 1, or null"),
        ({"scale": 0.0}, "'part.scale' is 0.0; it must be above 0 and at most 1e+06"),
        ({"scale": math.inf}, "'part.scale' is inf; it must be above 0 and at most 1e+06"),
        ({"file": ""}, "'part.file' is empty; leave it out for the default"),
        ({"split": "vla"}, "'part.split' is 'vla'; did you mean 'val'?"),
    ],
)
def test_a_value_out_of_range_is_named_with_key_and_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_settings("part", Settings(**values))  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_the_ends_of_a_range_and_null_are_allowed() -> None:
    for values in (
        {"blocks": 1},
        {"blocks": 4096},
        {"ratio": 0.0},
        {"scale": 1e6},
        {"width": None},
        {"seed": -(10**9)},
    ):
        check_settings("part", Settings(**values))  # type: ignore[arg-type]


def test_labels_of_options_and_of_root_keys() -> None:
    with pytest.raises(ConfigError, match=r"^--width is 0; it must be at least 1$"):
        check_settings("--", Settings(width=0))
    with pytest.raises(ConfigError, match=r"^'width' is 0; it must be at least 1, or null$"):
        check_settings("", Settings(width=0))
