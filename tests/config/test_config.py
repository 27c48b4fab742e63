"""Test settings from YAML: the round trip, and errors of one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from microdit.common.errors import ConfigError, nearest
from microdit.common.parsing import parse, read_yaml, to_mapping
from microdit.config.identity import former_keys
from sweeps.config.hydra_compose import compose_config


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner = Inner()
    mode: Literal["heun", "euler"] = "heun"
    flag: bool = False
    path: str | None = None
    names: tuple[str, ...] = ()


def test_values_survive_the_round_trip():
    values = {
        "steps": 3,
        "inner": {"rate": 0.5, "betas": [0.1, 0.2]},
        "mode": "euler",
        "flag": True,
        "path": None,
        "names": ["a"],
    }
    assert to_mapping(parse(Outer, values)) == values


def test_yaml_11_floats_are_understood():
    assert parse(Outer, {"steps": 1, "inner": {"rate": "1e-3"}}).inner.rate == 1e-3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 1, "inner": {"rte": 1}}, ["'inner.rte'", "'rate'", "run.yaml"]),
        ({"steps": "many"}, ["'steps'", "int", "'many'"]),
        ({"steps": True}, ["'steps'", "int"]),
        ({"steps": 1.5}, ["'steps'", "int"]),
        ({}, ["'steps'", "missing"]),
        ({"steps": 1, "mode": "huen"}, ["'mode'", "'heun'"]),
        ({"steps": 1, "flag": "yes"}, ["'flag'", "bool"]),
        ({"steps": 1, "inner": {"betas": [0.9]}}, ["'inner.betas'", "2 entries"]),
        ({"steps": 1, "inner": 3}, ["'inner'", "mapping"]),
        ({"steps": 1, "names": "abc"}, ["'names'", "list"]),
    ],
)
def test_mistakes_name_file_key_and_choice(values: dict, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        parse(Outer, values, "run.yaml")
    for word in ["run.yaml", *words]:
        assert word in str(caught.value)


def test_a_key_given_twice_is_rejected(tmp_path: Path):
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\nsteps: 2\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml.*'seed'.*line 3"):
        read_yaml(path)


def test_a_missing_file_names_its_neighbour(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"confg\.yaml: no such file; did you mean 'config\.yaml'"):
        read_yaml(tmp_path / "confg.yaml")


def test_nearest_lists_all_when_nothing_is_close():
    assert nearest("zzz", ["alpha", "beta"]) == "valid choices: alpha, beta"


def test_only_a_run_from_stored_weights_is_what_the_first_algorithm_computed() -> None:
    """The key was computed by commit 472a175, the last one of that algorithm."""
    weights = Path(__file__).parents[1] / "model" / "reference" / "small.safetensors"
    words = ["scale=smoke", "diffusion.sigma_data=0.9"]
    assert former_keys(compose_config([*words, f"training.init={weights}"]))[1] == "2ea56d7af79f1840"
    assert 1 not in former_keys(compose_config(words))


def test_a_run_of_the_second_algorithm_remains_valid_except_in_bf16() -> None:
    """The keys were computed by the code of commit 25802af, of that algorithm."""
    assert former_keys(compose_config(["scale=smoke"])) == {2: "abfb1792da542fe9"}
    assert former_keys(compose_config(["scale=smoke", "training.precision=bf16"])) == {}
