"""Test that recipes equal Hydra's, and that defaults equal the base file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from microdit.common.errors import ConfigError
from microdit.common.files.paths import group_options
from microdit.common.parsing import flatten, to_mapping
from microdit.config.identity import trial_key
from microdit.config.schema import Config, config_from_mapping
from sweeps.config.hydra_compose import compose_config

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PAPER = ("data.path=/d", "autoencoder.path=/a", "text.path=/t")


def test_the_base_file_holds_the_dataclasses_defaults() -> None:
    file = yaml.safe_load((EXPERIMENTS / "base.yaml").read_text(encoding="utf-8"))
    assert file.pop("defaults")
    assert file.pop("output_dir") == "runs/${name}"
    own = to_mapping(Config())
    assert own.pop("output_dir") == f"runs/{own['name']}"
    assert flatten(file, empty=True).keys() == flatten(own, empty=True).keys()
    assert to_mapping(config_from_mapping(file)) | {"output_dir": None} == own | {"output_dir": None}


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("training.steps=800", "optimizer.lr=1e-3", "name=mine"),
        ("data.resolution=128", "autoencoder.path=pixels"),
        ("sampler={steps: 4}", "evaluation.metrics=[fd, kid]", "training.init=null"),
        ("output_dir=/tmp/there", "name=other", "plugins=[]", "model.masking.options.depth=3"),
        ("model.input_size=8", "data.resolution=32"),
    ],
)
@pytest.mark.parametrize("name", group_options("scale"))
def test_a_preset_equals_what_hydra_composes(name: str, words: tuple[str, ...]) -> None:
    paper = PAPER if name == "paper" else ()
    given = [word for word in paper if not any(other.startswith(word.split("=")[0]) for other in words)]
    found = Config.preset(name, overrides=[*given, *words])
    expected = compose_config([f"scale={name}", *given, *words])
    assert found == expected
    assert trial_key(found) == trial_key(expected)


def test_a_preset_that_lacks_a_value_names_it() -> None:
    with pytest.raises(ConfigError, match=r"preset 'paper': no default for data\.path, autoencoder\.path"):
        Config.preset("paper")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("dmeo", [], r"no preset 'dmeo'; did you mean 'demo'"),
        ("demo", ["training.stps=1"], r"unknown key 'training\.stps'; did you mean 'training\.steps'"),
        ("demo", ["training.steps"], r"'training\.steps' is not of the form key=value"),
        ("demo", ["training.steps=0"], r"preset 'demo': 'training\.steps' is 0"),
    ],
)
def test_mistakes_are_named(name: str, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.preset(name, overrides=words)
