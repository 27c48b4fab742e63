"""Provide a web server, and the real img2dataset or a stand-in with the same interface."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from coyo_rows import Web, serving

STAND_IN = """
import io, json, os, pathlib, sys, urllib.request
import pyarrow as pa, pyarrow.parquet as pq
from PIL import Image, ImageOps

options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
folder, size = pathlib.Path(options["output_folder"]), int(options["image_size"])
per_shard = int(options["number_sample_per_shard"])
if os.environ.get("STAND_IN_FAILS"):
    sys.exit("no space left")

def fetch(url):
    for _ in range(int(options["retries"]) + 1):
        try:
            with urllib.request.urlopen(url, timeout=int(options["timeout"])) as answer:
                if "noai" in answer.headers.get("X-Robots-Tag", ""):
                    return None, "failed_to_download", "Use of image disallowed by X-Robots-Tag directive"
                data = answer.read()
        except Exception as error:
            said = str(error)
            continue
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB")
        except OSError:
            return None, "failed_to_resize", "Image decoding error"
        if min(image.size) < int(options["min_image_size"]):
            return None, "failed_to_resize", "image too small"
        return ImageOps.fit(image, (size, size)), "success", None
    return None, "failed_to_download", said

urls = pq.read_table(options["url_list"])["url"].to_pylist()
for shard, start in enumerate(range(0, len(urls), per_shard)):
    if (folder / f"{shard:05}_stats.json").exists():
        continue
    (folder / f"{shard:05}").mkdir(exist_ok=True)
    rows = []
    for place, url in enumerate(urls[start : start + per_shard]):
        key = f"{shard:05}{place:04}"
        image, status, message = fetch(url)
        if image is not None:
            image.save(folder / f"{shard:05}" / f"{key}.jpg")
        rows.append({"url": url, "key": key, "status": status, "error_message": message})
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05}.parquet")
    got = sum(r["status"] == "success" for r in rows)
    (folder / f"{shard:05}_stats.json").write_text(json.dumps({"count": len(rows), "successes": got}))
"""


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stand_in")
    for name, text in (("img2dataset/__init__.py", ""), ("img2dataset/main.py", STAND_IN)):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(text)
    (home / "img2dataset-1.47.0.dist-info").mkdir()
    (home / "img2dataset-1.47.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: img2dataset\nVersion: 1.47.0\n"
    )
    python = home / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{home}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture(params=["stand_in", pytest.param("real", marks=pytest.mark.slow)])
def python(request: pytest.FixtureRequest) -> Path:
    """Return a Python that has img2dataset, or a stand-in with its interface."""
    if request.param == "stand_in":
        return request.getfixturevalue("stand_in")
    found = Path(os.environ.get("MICRODIT_IMG2DATASET", "~/.cache/microdit/img2dataset/bin/python")).expanduser()
    if not found.is_file():
        pytest.skip("img2dataset is not installed; MICRODIT_IMG2DATASET=PYTHON names a Python that has it")
    return found


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    with serving() as web:
        monkeypatch.setenv("http_proxy", web.proxy)
        monkeypatch.setenv("no_proxy", "")
        yield web
