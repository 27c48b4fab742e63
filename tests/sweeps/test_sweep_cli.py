"""Test the `microdit-sweep` command: help, plans, configurations, and one line per mistake."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import error_line

from microdit.config.schema import config_from_mapping
from sweeps.cli import main
from sweeps.tracking.mlflow_store import Store
from sweeps.tracking.mlflow_ui import links


@pytest.mark.parametrize("words", [[], ["--help"], ["study=masking_ratio", "-h"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    for word in ("study=NAME", "plan", "train", "ui", "workers=N", "tracking_uri="):
        assert word in printed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("study=maskin_ratio", ["no study 'maskin_ratio'", "'masking_ratio'"]),
        ("study=masking_ratio scale=dmeo", ["no scale 'dmeo'", "'demo'"]),
        ("study=masking_ratio scale=smoke training.stpes=3", ["'training.stpes'", "'training.steps'"]),
        ("study=masking_ratio scale=smoke lr=3", ["'lr'", "optimizer.lr"]),
        ("study=masking_ratio scale=smoke optimizer.lr=fast", ["'optimizer.lr'", "'fast'"]),
        ("study=masking_ratio scale=smoke seed=3", ["'seed'", "seeds=[...]"]),
        ("study=masking_ratio scale=smoke output_dir=x", ["'output_dir'", "root="]),
        ("study=masking_ratio scale=smoke seeds=[a]", ["seeds=['a']", "whole numbers"]),
        ("study=masking_ratio scale=smoke workers=0", ["workers=0", "at least 1"]),
        ("study=masking_ratio scale=smoke worker=2", ["'worker'", "'workers'"]),
        ("study=masking_ratio scale=smoke reuse=no-thanks", ["reuse=no-thanks", "true or false"]),
        ("study=masking_ratio scale=smoke scale=demo", ["scale is given already"]),
        ("study=masking_ratio scale=smoke model=dit_tny", ["no model 'dit_tny'", "'dit_tiny'"]),
        ("study=masking_ratio scale=smoke +new=1", ["'+new=1'", "only set"]),
        ("study=masking_ratio scale=smoke tracking_uri=nosuch://x", ["tracking_uri=nosuch://x", "can't be opened"]),
        ("study=masking_ratio scale=smoke model.masking.ratio=0.5", ["arm 'none'", "'model.masking.ratio'"]),
        ("train -m study=masking_ratio", ["'study' is not an option of", "train"]),
        ("study=masking_ratio -m", ["-m is an option of train only"]),
        ("status study=masking_ratio", ["never launched at scale 'demo'"]),
        ("study=masking_ratio accelerator=h100", ["'accelerator' is not an option of"]),
        ("study=masking_ratio scale=smoke evaluation.metrics=[fd]", ["'metrics.primary'", "'clip_fd'"]),
        ("study=mine.yaml", ["mine.yaml", "no such file"]),
        ("study=", ["needs a value"]),
        ("plam study=masking_ratio", ["'plam'", "'plan'"]),
        ("plan", ["give study=NAME"]),
        ("train study=masking_ratio", ["'study' is not an option of", "train"]),
        ("train scale=paper", ["data.path", "autoencoder.path"]),
        ("ui training.steps=3", ["'training.steps=3' is not an option of"]),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    line: str, words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(line.split()) == 2
    error = error_line(capsys.readouterr().err)
    for word in words:
        assert word in error
    assert error.startswith("microdit-sweep: ")
    assert not list(tmp_path.iterdir())


def test_sizes_that_do_not_fit_are_rejected_before_anything_is_recorded(
    capsys: pytest.CaptureFixture[str], cache_dir: Path, tmp_path: Path
) -> None:
    assert main(["study=masking_ratio", "scale=smoke", "data.resolution=33", f"cache_dir={cache_dir}"]) == 2
    assert "'data.resolution' is 33" in capsys.readouterr().err
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    assert [e.name for e in client.search_experiments()] == ["Default"]


def test_a_plan_lists_arms_and_costs_and_makes_no_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "study=masking_ratio", "scale=paper", "measure=false"]) == 0
    lines = capsys.readouterr().out.splitlines()
    none = next(line for line in lines if line.startswith("none"))
    deferred = next(line for line in lines if line.startswith("deferred_75"))
    assert none.split()[1:6] == ["0", "1", "2", "0", "3"], "seeds, done, pending"
    assert float(deferred.split()[-2]) < 0.6 * float(none.split()[-2]), "GFLOPs at 75% masking"
    assert any(line.startswith("57 trials, 0 done") for line in lines)
    assert not list(tmp_path.iterdir())


def test_config_prints_a_complete_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "scale=smoke", "optimizer.lr=0.5", "seed=7"]) == 0
    config = config_from_mapping(yaml.safe_load(capsys.readouterr().out))
    assert (config.optimizer.lr, config.seed) == (0.5, 7)


def test_links_open_on_the_trials_of_each_study(store: Store) -> None:
    tags = {"microdit.primary": "class_accuracy", "microdit.direction": "maximize"}
    number = store.experiment("microdit/mine", tags)
    everything, mine = links(store, "http://here:1")
    assert everything.endswith("http://here:1/#/experiments?workflowType=machine_learning")
    assert f"/#/experiments/{number}/runs?workflowType=machine_learning" in mine
    assert "orderByKey=metrics.%60final%2Fclass_accuracy%60&orderByAsc=false" in mine


def test_a_taken_port_is_reported(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["ui", f"tracking_uri={store.uri}", f"port={port}"]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["smoke", "demo", "gpu"])
def test_a_configuration_is_checked_without_pytorch(scale: str) -> None:
    code = (
        "import sys; from sweeps.cli import main; code = main(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, "config", f"scale={scale}"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
