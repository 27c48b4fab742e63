"""Test the complete `microdit data cifar-captions`: web server faults, interruptions, and training.

By default a short stand-in replaces img2dataset, with the same arguments, files and records. The tests marked slow use
the real one if it is installed (MICRODIT_IMG2DATASET=PYTHON, or ~/.cache/microdit).
"""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from coyo_rows import Web, row, write
from PIL import Image

from microdit.cli.main import main
from microdit.config.schema import Config, save_config
from microdit.data.config import DataConfig
from microdit.data.registry import build_dataset


def rows_of(web: Web, *kinds: str) -> list[dict[str, Any]]:
    """Return one row per path of the server, cats and dogs in turn."""
    return [
        row(
            k,
            f"a photo of one {('cat', 'dog')[k % 2]}, number {k}",
            url=f"{web.address}/{kind}",
            image_phash=f"{k:016x}",
        )
        for k, kind in enumerate(kinds)
    ]


def words(tmp_path: Path, python: Path, *more: str) -> list[str]:
    place = ["--coyo", str(tmp_path / "coyo"), "--out", str(tmp_path / "out"), "--img2dataset", str(python)]
    quick = ["--timeout", "1", "--retries", "1", "--threads", "8", "--shard-size", "4", "--val-fraction", "0.3"]
    return ["data", "cifar-captions", *place, *quick, *more]


def entries(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / "images" / "metadata.jsonl").read_text().splitlines()]


def test_good_urls_are_downloaded_and_faults_counted(
    tmp_path: Path, python: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [f"ok/{k}.jpg" for k in range(8)] + ["moved/8"]
    write(tmp_path / "coyo", rows_of(web, *good, "missing/0", "missing/1", "broken/0", "slow/0", "small/0", "optout/0"))
    assert main(words(tmp_path, python)) == 0
    said = capsys.readouterr().out
    found = entries(tmp_path)
    assert {entry["url"].removeprefix(web.address + "/") for entry in found} == set(good)
    for entry in found:
        number = int(entry["text"].split()[-1])
        assert entry["label"] == ("cat", "dog")[number % 2] == entry["file_name"].split("/")[0]
        with Image.open(tmp_path / "out" / "images" / entry["file_name"]) as image:
            assert image.size == (256, 256)
    report = json.loads((tmp_path / "out" / "download.json").read_text())
    assert (report["urls"], report["succeeded"], sum(report["failed"].values())) == (15, 9, 6)
    assert report["failed"]["failed_to_download: HTTP Error 404: Not Found"] == 2
    assert report["images"]["cat"] == sum(entry["label"] == "cat" for entry in found)
    assert web.requests["/missing/0"] == 2  # tried again once
    assert "2  failed: failed_to_download: HTTP Error 404: Not Found" in said
    assert "9  images of 15 urls" in said
    assert "HTTP Error 404" in (tmp_path / "out" / "card.md").read_text()
    for split in ("train", "val"):
        data = build_dataset(DataConfig(name="folder", path=str(tmp_path / "out" / "images"), resolution=32), split)
        assert data.classes == ("cat", "dog")
        mine = {entry["file_name"]: entry for entry in found if entry["split"] == split}
        assert {data[i].attributes["file"] for i in range(len(data))} == set(mine)
        assert all(data.classes[data[i].label] == mine[data[i].attributes["file"]]["label"] for i in range(len(data)))


def test_a_finished_download_is_not_repeated(tmp_path: Path, python: Path, web: Web) -> None:
    write(tmp_path / "coyo", rows_of(web, *(f"ok/{k}.jpg" for k in range(6)), "missing/0"))
    assert main(words(tmp_path, python)) == 0
    requests, found = web.requests.copy(), entries(tmp_path)
    assert main(words(tmp_path, python)) == 0
    assert web.requests == requests
    assert entries(tmp_path) == found


@pytest.mark.parametrize("sign", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_an_interrupted_download_resumes(tmp_path: Path, python: Path, web: Web, sign: signal.Signals) -> None:
    kinds = [f"ok/{k}.jpg" for k in range(7)] + [f"gate/{k}.jpg" for k in range(7, 14)]
    write(tmp_path / "coyo", rows_of(web, *kinds))
    call = words(tmp_path, python, "--shard-size", "1", "--timeout", "60", "--threads", "1")
    shards = tmp_path / "out" / "download" / "shards"
    with open(tmp_path / "said", "wb") as said:
        first = subprocess.Popen([sys.executable, "-m", "microdit", *call], stdout=said, stderr=said)
    try:
        # The order is drawn: when a gate is met, all that came before it is complete.
        wait_until(lambda: any(path.startswith("/gate") for path in web.requests))
        time.sleep(0.5)
        complete = {path.name for path in shards.glob("*_stats.json")}
        first.send_signal(sign)
        assert first.wait(60) == (130 if sign == signal.SIGINT else -sign)
    finally:
        first.kill()
    assert not (tmp_path / "out" / "images").exists()
    web.gate.set()
    before = Counter({path: count for path, count in web.requests.items() if path.startswith("/ok")})
    assert main(call) == 0
    assert len(entries(tmp_path)) == len(kinds)
    assert complete <= {path.name for path in shards.glob("*_stats.json")}
    again = [path for path in before if web.requests[path] > before[path]]
    assert len(again) <= 1  # the one that may have been under way
    left = [p for p in psutil.process_iter(["cmdline"]) if str(shards) in " ".join(p.info["cmdline"] or [])]
    assert not left


def wait_until(holds: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def failing(capsys: pytest.CaptureFixture[str], call: list[str]) -> str:
    assert main(call) == 2
    return capsys.readouterr().err.strip().split("\n")[-1]


def test_failures_are_reported(
    tmp_path: Path, stand_in: Path, web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "coyo", rows_of(web, "missing/0", "missing/1"))
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    assert "that Python can't import img2dataset" in failing(capsys, words(tmp_path, bare))
    assert (tmp_path / "out" / "selection.parquet").is_file()  # earlier results are kept
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    assert "img2dataset ended with code 1: no space left (all of it: " in failing(capsys, words(tmp_path, stand_in))
    monkeypatch.delenv("STAND_IN_FAILS")
    said = failing(capsys, words(tmp_path, stand_in))
    assert "none of 2 urls gave an image: failed_to_download: HTTP Error 404: Not Found: 2" in said
    said = failing(capsys, words(tmp_path, stand_in, "--image-size", "128"))
    assert "was begun with image_size 256, not 128; remove that folder" in said


@pytest.mark.slow
def test_a_failed_installation_is_reported(
    tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "coyo", rows_of(web, "ok/0.jpg"))
    # pip finds no package anywhere: it has neither an index nor a folder of packages.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    call = words(tmp_path, tmp_path)
    place = call.index("--img2dataset")
    call[place : place + 2] = ["--cache-dir", str(tmp_path / "cache")]
    said = failing(capsys, call)
    assert "img2dataset can't be installed into" in said
    assert "--img2dataset PATH" in said
    assert not web.requests


def test_training_takes_labels_and_splits(tmp_path: Path, stand_in: Path, web: Web, smoke_config: Config) -> None:
    write(tmp_path / "coyo", rows_of(web, *(f"ok/{k}.jpg" for k in range(24))))
    assert main(words(tmp_path, stand_in, "--shard-size", "24")) == 0
    config = dataclasses.replace(
        smoke_config,
        data=DataConfig(name="folder", path=str(tmp_path / "out" / "images"), resolution=32),
        training=dataclasses.replace(smoke_config.training, steps=2),
        evaluation=dataclasses.replace(smoke_config.evaluation, samples=4, metrics=("class_accuracy",)),
        output_dir=str(tmp_path / "run"),
    )
    save_config(config, tmp_path / "config.yaml")
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    assert 0 <= json.loads((tmp_path / "run" / "metrics.json").read_text())["final/class_accuracy"] <= 1
