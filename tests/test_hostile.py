"""Test hostile and absurd input: one clear, short, printable error, and no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from microdit.cli.main import main
from microdit.common.errors import ConfigError, DataError, MicroditError
from microdit.common.files.atomic import walk_files
from microdit.common.files.text import parse_json, read_json
from microdit.common.parsing import read_yaml, to_mapping
from microdit.config.schema import config_from_mapping
from sweeps.cli import main as sweep
from sweeps.config.hydra_compose import compose_config

BILLION_LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)
)
YAMLS = {
    "digits": "seed: " + "9" * 5000,
    "hexadecimal digits": "seed: 0x" + "f" * 5000,
    "deep list": "a: " + "[" * 5000 + "]" * 5000,
    "deep block": "a:\n" + "".join(" " * i + "- \n" for i in range(1, 200)),
    "deep mapping": "{a: " * 300 + "1" + "}" * 300,
    "billion laughs": BILLION_LAUGHS,
    "an alias to itself": "a: &a [*a]",
    "an invalid date": "seed: 2026-13-45",
    "a valid date": "name: 2026-01-02",
    "an invalid tag": "seed: !!int abc",
    "an empty integer": 'seed: !!int ""',
    "a wrong boolean": "seed: !!bool abc",
    "a wrong float": "seed: !!float abc",
    "a python object": "seed: !!python/object/apply:os.system ['true']",
    "a python name": "seed: !!python/name:os.system",
    "binary": "seed: !!binary x",
    "a set": "seed: !!set {a, b}",
    "a list as key": "? [a, b]\n: 1",
    "a mapping as key": "? {a: b}\n: 1",
    "a number as key": "1: 2",
    "a boolean as key": "on: 2",
    "nothing as key": "~: 2",
    "a merge key": "a: &a {x: 1}\nb: {<<: *a, y: 2}",
    "a key twice": "a: 1\na: 2",
    "a tab": "a:\n\t- b",
    "a null character": "a: \0",
    "an escape character": "a: \x1b[31mred",
    "not a number": "a: .nan",
    "two documents": "a: 1\n---\nb: 2",
    "half a surrogate": 'a: "\\ud800"',
    "no code point": 'a: "\\U00110000"',
    "a list": "[1, 2]",
    "nothing": "",
    "an unknown alias": "a: *b",
}


def one_error(call: Callable[[], object], kind: type[MicroditError] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert 0 < len(text) <= 2200
    assert all(c.isprintable() or c in "\n\t" for c in text)
    return text


@pytest.mark.parametrize("name", YAMLS)
def test_a_hostile_yaml_is_one_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(YAMLS[name], encoding="utf-8")
    assert one_error(lambda: read_yaml(path)).startswith((f"{path}: ", f"{path}, line 1: "))


@pytest.mark.parametrize("name", YAMLS)
def test_the_commands_end_with_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(YAMLS[name], encoding="utf-8")
    assert main(["train", str(path)]) == 2
    assert sweep([f"study={path}", "scale=smoke", f"root={tmp_path}"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("waiting for ")]
    assert [line.partition(":")[0] for line in lines] == ["microdit", "microdit-sweep"]


def test_files_that_are_no_text_files_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with open(tmp_path / "huge.yaml", "wb") as stream:
        stream.truncate(1 << 40)
    reasons = {"folder": "folder", "pipe": "pipe", "latin": "UTF-8", "loop": "can't be read", "huge": "bytes"}
    for name, reason in reasons.items():
        assert reason in one_error(lambda name=name: read_yaml(tmp_path / f"{name}.yaml"))  # type: ignore[misc]
    assert "too long" in one_error(lambda: read_yaml(tmp_path / ("a" * 5000))).lower() or "no such file"
    assert "no such file" in one_error(lambda: read_yaml(tmp_path / "a\0b"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(tmp_path / "mine.yaml") == {"a": 1}


def test_a_missing_file_suggests_only_a_similar_name(tmp_path: Path) -> None:
    (tmp_path / "unrelated.yaml").write_text("a: 1")
    assert "unrelated" not in one_error(lambda: read_yaml(tmp_path / "missing.yaml"))
    (tmp_path / "config.yaml").write_text("a: 1")
    assert "did you mean 'config.yaml'?" in one_error(lambda: read_yaml(tmp_path / "confg.yaml"))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "9" * 5000, "NaN", "[Infinity]", "1e999", '{"a": 1, "a": 2}', '"\\ud800"', "{", "", "\0"],
)
def test_a_hostile_json_is_one_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    one_error(lambda: read_json(tmp_path / "x.json", DataError), DataError)
    one_error(lambda: parse_json(text, "x"), DataError)


SETTINGS = [
    "sampler.guidance", "sampler.rho", "sampler.sigma_max", "sampler.churn.noise", "optimizer.lr",
    "optimizer.weight_decay", "optimizer.eps", "training.clip", "training.caption_dropout", "diffusion.p_mean",
    "diffusion.p_std", "evaluation.p_mean", "alignment.weight", "cost.usd_per_hour", "model.norm_eps",
    "model.ffn_width.start", "model.experts.capacity", "model.masking.reconstruction", "data.val_fraction",
]  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_setting_that_is_not_finite_is_rejected(key: str, value: str) -> None:
    """The value is from a YAML file, from Hydra's command line, or from Python."""
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
        compose_config([f"{key}={value}"])
    values = to_mapping(compose_config([]))
    *parents, leaf = key.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    node[leaf] = yaml.safe_load(f".{value}" if value[0] != "-" else "-.inf")
    with pytest.raises(ConfigError, match=leaf):
        config_from_mapping(values)


def test_infinity_is_an_end_of_the_guidance_interval() -> None:
    config = compose_config(["sampler.guidance=2", "sampler.guidance_interval.sigma_high=inf"])
    assert config.sampler.guidance_interval.sigma_high == float("inf")
    with pytest.raises(ConfigError, match="sigma_high"):
        compose_config(["sampler.guidance=2", "sampler.guidance_interval.sigma_high=nan"])


@pytest.mark.parametrize("value", [".nan", ".inf", "[1, .nan]", "{a: .inf}", "'x'", "9" * 30])
def test_bounds_of_a_search_are_finite_numbers(value: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    space = "{low: 1.0e-4, high: VALUE}".replace("VALUE", value)
    path.write_text(f"question: x\nn_trials: 2\nseeds: [0]\nsearch: {{optimizer.lr: {space}}}\n")
    assert sweep([f"study={path}", "scale=smoke", f"root={tmp_path}"]) == 2
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("factor", ["nan", "inf", "1/0", "1e999999999", "a", "[1]", "9" * 200, "1/2/3"])
def test_a_factor_is_a_finite_number(factor: str) -> None:
    with pytest.raises(ConfigError):
        compose_config(["recipe=phase2_finetune_256", f"times.training.steps={factor}"])


@pytest.mark.parametrize(
    "word",
    [
        "seed=" + "9" * 5000,
        "seed=" + "[" * 5000,
        "seed=" + "[" * 40 + "]" * 40,
        "seed={" * 30,
        "name=" + "x" * 200_000,
        "name=${name}",
        "name=${oc.env:NOT_THERE}",
        "training.steps=${share:a,b}",
        "model.depth=1e9",
        "model.width=100000000",
        "training.batch_size=1000000000000000000",
        "data.resolution=1000000",
        "evaluation.samples=1000000000000",
        "training.steps=1e300",
        "output_dir=" + "a" * 5000,
        "output_dir=" + "a" * 300,
        "data.path=" + "a" * 300,
        "x" * 5000 + "=1",
        "data=" + "x" * 5000,
    ],
)
def test_a_hostile_word_is_one_line(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(["train", word, f"root={tmp_path}"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert len(line) < 2300
    assert not list(tmp_path.iterdir())


def test_a_size_that_no_machine_has_is_rejected_by_arithmetic() -> None:
    with pytest.raises(ConfigError, match=r"depth.*width.*parameters"):
        compose_config(["model.depth=4096", "model.width=131072", "model.mixer.width=128"])
    with pytest.raises(ConfigError, match=r"batch_size.*TB per batch"):
        compose_config(["training.batch_size=1048576", "data.resolution=16384", "training.accumulation=1"])


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "run", "a cat", "--count", "0"],
        ["sample", "run", "a cat", "--count", "-3"],
        ["sample", "run", "a cat", "--count", "9" * 5000],
        ["sample", "run", "a cat", "--guidance", "nan"],
        ["sample", "run", "a cat", "--guidance", "inf"],
        ["sample", "run", "a cat", "--guidance-interval", "nan", "1"],
        ["sample", "run", "a cat", "--steps", "0"],
        ["sample", "run", "a cat", "--seed", "-1"],
        ["evaluate", "run", "--guidance", "nan"],
        ["evaluate", "run", "--samples", "-1"],
        ["evaluate", "run", "--reference-count", "0"],
        ["finetune", "run", "--data", "x", "--out", "y", "--steps", "0"],
        ["data", "show", "config.yaml", "--count", "0"],
        ["data", "encode", "x", "--out", "y", "--val-fraction", "nan"],
    ],
)
def test_an_option_takes_only_numbers_that_make_sense(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert words[-2] in last or words[-3] in last
    assert len(last) < 400


@pytest.mark.parametrize("words", [["train", "-m"], ["train", "-m", "scale=smoke"], ["train", "-m", "seed=1"]])
def test_a_multirun_without_a_list_starts_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep(words) == 2
    assert "list of values" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_multirun_or_study_has_a_number_of_arms_that_can_be_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(["train", "-m", "seed=range(0,1000000000)", f"root={tmp_path}"]) == 2
    assert "combinations" in capsys.readouterr().err
    axes = ", ".join(
        f"{key}: [{', '.join(map(str, range(1, 60)))}]" for key in ("model.depth", "seed", "training.steps")
    )
    (tmp_path / "mine.yaml").write_text(f"{{question: x, axes: {{{axes}}}}}")
    assert sweep([f"study={tmp_path / 'mine.yaml'}", f"root={tmp_path}"]) == 2
    assert "205,379 combinations" in capsys.readouterr().err


def test_loops_and_bushes_of_links_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one.png").write_bytes(b"")
    (tmp_path / "a" / "b" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "knot").symlink_to("knot")
    for i in range(40):  # 2^40 paths, 41 folders
        (tmp_path / f"d{i}").mkdir()
    for i in range(39):
        for name in "xy":
            (tmp_path / f"d{i}" / name).symlink_to(tmp_path / f"d{i + 1}")
    found = [path.relative_to(tmp_path).as_posix() for path in walk_files(tmp_path)]
    assert found == ["broken", "knot", "a/b/one.png"]


SCRIPT = """
import sys
from microdit.common.process.terminal import safely
def main():
    print("100 → 50 ± 2 × 3 é 日 σ")
    print("bar █ ✓", file=sys.stderr)
    return 0
sys.exit(safely(main))
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_a_character_gets_plain_text(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert text.startswith("100 -> 50 ")
    assert ("é" in text) == (encoding != "ascii")
    assert "\\u65e5" in text
    assert "sigma" in text or "σ" in text


@pytest.mark.parametrize("command", ["microdit", "sweeps", "analysis"])
def test_a_closed_pipe_ends_a_command_quietly(command: str) -> None:
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-m", command, "--help"]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == b""
