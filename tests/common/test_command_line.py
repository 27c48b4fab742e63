"""Test the parser of the three commands: help with examples, tab completion, one line per mistake."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

import analysis.cli
import microdit.cli.main
import sweeps.cli
from microdit.common.command_line import SWITCH, add_settings, make_parser, run_command, split_words
from microdit.common.errors import ConfigError

MAINS: dict[str, Callable[[list[str]], int]] = {
    "microdit": microdit.cli.main.main,
    "microdit-sweep": sweeps.cli.main,
    "microdit-report": analysis.cli.main,
}
SUBCOMMANDS = [
    *(f"microdit {name}" for name in ("train", "finetune", "sample", "evaluate", "data", "import")),
    *(f"microdit data {name}" for name in ("show", "encode", "cifar-captions", "cifar10")),
    *(f"microdit-sweep {name}" for name in ("run", "plan", "status", "train", "config", "relocate", "ui")),
]


@pytest.mark.parametrize("line", [*MAINS, *SUBCOMMANDS])
def test_every_help_has_examples_of_its_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = line.split()
    assert MAINS[program]([*words, "--help"]) == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert examples
    assert all(program in example for example in examples)


@pytest.mark.parametrize("program", MAINS)
def test_version_and_usage_are_printed(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert MAINS[program](["--version"]) == 0
    assert capsys.readouterr().out.split() == [program, "0.1.0"]
    assert MAINS[program]([]) == 0
    assert capsys.readouterr().out.startswith(f"usage: {program}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("microdit trian", ["'trian'", "did you mean 'train'?"]),
        ("microdit sample run cat --cuont 3", ["--cuont 3", "did you mean '--count'?"]),
        ("microdit-sweep study=x --scael demo", ["--scael", "did you mean '--scale'?"]),
        ("microdit-report x --scael demo", ["--scael", "did you mean '--scale'?"]),
        ("microdit-report x --scale demo scale=gpu", ["scale is given already, as 'demo'"]),
        ("microdit --print-completion fish", ["'fish'", "did you mean 'zsh'?"]),
    ],
)
def test_an_error_is_one_line_with_the_nearest_name(
    line: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    program, *rest = line.split()
    assert MAINS[program](rest) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"{program}: ")
    for word in words:
        assert word in error


def complete(program: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return bash's completions for the last of `words`."""
    assert MAINS[program](["--print-completion", "bash"]) == 0
    listed = " ".join(f"'{word}'" for word in [program, *words])
    script = f"""{capsys.readouterr().out}
COMP_WORDS=({listed}); COMP_CWORD={len(words)}
_shtab_{program.replace("-", "_")}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    made = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return set(made.stdout.split())


def test_bash_completes_commands_options_studies_and_scales(capsys: pytest.CaptureFixture[str]) -> None:
    assert complete("microdit", ["sam"], capsys) == {"sample"}
    assert complete("microdit", ["sample", "--gui"], capsys) == {
        "--guidance",
        "--guidance-by",
        "--guidance-interval",
    }
    assert complete("microdit-sweep", ["pl"], capsys) == {"plan"}
    assert complete("microdit-sweep", ["plan", "st"], capsys) == {"study="}
    assert complete("microdit-sweep", ["plan", "study", "=", "masking_ra"], capsys) == {"masking_ratio"}
    assert complete("microdit-sweep", ["plan", "--scale", "sm"], capsys) == {"smoke"}
    assert complete("microdit-report", ["mixer_s"], capsys) == {"mixer_size"}
    assert complete("microdit-report", ["--scale", "pa"], capsys) == {"paper"}


@pytest.mark.parametrize("program", MAINS)
def test_scripts_for_other_shells(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert MAINS[program](["--print-completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith(f"#compdef {program}")


def test_options_are_read_in_both_forms() -> None:
    parser = make_parser("program", "", ["program"])
    add_settings(parser, {"tracking_uri": ("URI", ""), "wide": (SWITCH, "")}, {})
    words = ["tracking_uri=a=b", "--wide", "model.depth=3", "lr=1"]
    assert split_words(parser, words) == (["--tracking-uri=a=b", "--wide", "true"], ["model.depth=3", "lr=1"])
    assert split_words(parser, ["--tracking-uri", "x=y", "--wide"]) == (["--tracking-uri", "x=y", "--wide", "true"], [])
    assert split_words(parser, ["--wide", "false"]) == (["--wide", "false"], [])


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ConfigError("no such key"), 2, "program: no such key\n"),
        (PermissionError(13, "Permission denied", "out"), 2, "program: out: Permission denied\n"),
        (KeyboardInterrupt(), 130, "program: interrupted\n"),
        (SystemExit(0), 0, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_exit_codes_of_a_command(
    error: BaseException, code: int, printed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> int:
        raise error

    monkeypatch.setattr("microdit.common.process.terminal._discard_output", lambda: None)
    assert run_command("program", body) == code
    assert capsys.readouterr().err == printed


def test_an_unexpected_error_leaves_a_masked_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise RuntimeError("secret")

    assert run_command("program", body, mask=lambda text: text.replace("secret", "***")) == 1
    assert capsys.readouterr().err.endswith("RuntimeError: ***\n")
