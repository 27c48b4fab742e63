"""Test that the GPU check's runner reports every kind of outcome, keeps partial results, and exits accordingly."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import check
import pytest
import torch

GOOD = """
import pytest

def test_with_a_figure(record_property):
    record_property("speed", {"value": 2.5, "at_least": 2, "at_most": None})

def test_that_is_skipped():
    pytest.skip("needs another GPU")
"""
BAD = """
def test_that_misses_a_target(record_property):
    record_property("speed", {"value": 1.5, "at_least": 2, "at_most": None})
    assert False, "too slow"

def test_without_memory():
    import torch
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")

def test_after_these():
    pass
"""
CRASHING = """
import os

def test_before_it():
    pass

def test_that_ends_the_process():
    os._exit(3)
"""
HANGING = """
import time

def test_before_it():
    pass

def test_that_hangs():
    time.sleep(600)
"""


def results_of(tmp_path: Path, **sources: str) -> tuple[dict[str, dict[str, Any]], Path]:
    """Run checks of these test files; return the result of each, and the folder of the page."""
    checks = {}
    for name, source in sources.items():
        path = tmp_path / f"test_{name}.py"
        path.write_text(source)
        checks[name] = check.Check(f"the {name} one", (str(path),), 10 if name == "hanging" else 100)
    out = tmp_path / "out"
    out.mkdir()
    options = check.Options(dry_run=True, deadline=time.monotonic() + 300, out=out, at_once=len(sources))
    return {result["check"]: result for result in check.run_checks(checks, options)}, out


def outcomes(result: dict[str, Any]) -> dict[str, str]:
    return {test["test"].partition("::")[2]: test["outcome"] for test in result["tests"]}


def test_one_check_does_not_stop_the_others(tmp_path: Path):
    results, out = results_of(tmp_path, bad=BAD, crashing=CRASHING, hanging=HANGING, good=GOOD)
    found = {name: result["outcome"] for name, result in results.items()}
    assert found == {
        "bad": "failed",
        "crashing": "failed",
        "hanging": "unfinished",
        "good": "passed",
    }
    assert outcomes(results["bad"]) == {
        "test_that_misses_a_target": "failed",
        "test_without_memory": "failed",
        "test_after_these": "passed",
    }
    assert outcomes(results["crashing"]) == {"test_before_it": "passed", "test_that_ends_the_process": "unfinished"}
    assert outcomes(results["hanging"]) == {"test_before_it": "passed", "test_that_hangs": "unfinished"}
    assert outcomes(results["good"]) == {"test_with_a_figure": "passed", "test_that_is_skipped": "skipped"}
    stored = json.loads((out / "gpu_check.json").read_text())
    assert (stored["passed"], stored["complete"]) == (False, True)
    page = (out / "gpu_check.md").read_text()
    for words in ("1 of 4 checks passed", "too slow", "**missed**", "| good | passed |", "exit status 3", "at least 2"):
        assert words in page


def test_no_check_starts_after_the_deadline(tmp_path: Path):
    options = check.Options(dry_run=True, deadline=time.monotonic() - 1, out=tmp_path)
    (result,) = check.run_checks({"late": check.Check("late", ("nothing.py",), 10)}, options)
    assert (result["outcome"], result["message"]) == ("unfinished", "no time was left")


@pytest.mark.parametrize(("outcome", "code"), [("passed", 0), ("failed", 1), ("unfinished", 1), ("skipped", 1)])
def test_the_exit_status_tells_whether_all_passed(
    outcome: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answers = {"parity": "passed", "feed": outcome}

    def answer(name: str, of: check.Check, options: check.Options) -> dict[str, Any]:
        found = {"check": name, "title": of.title, "outcome": answers[name], "seconds": 1.0}
        return found | {"tests": [], "message": ""}

    monkeypatch.setattr(check, "run_check", answer)
    assert check.main(["parity", "feed", "--dry-run", "--out", str(tmp_path)]) == code


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_at_once_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert check.main(["--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no CUDA device" in captured.err
    assert not (tmp_path / "out").exists()


def test_every_file_of_this_folder_is_checked():
    checked = {Path(word).name for entry in check.CHECKS.values() for word in entry.words if word.endswith(".py")}
    assert {path.name for path in Path(check.HERE).glob("test_gpu_*.py")} <= checked
