"""Download images with img2dataset in a separate virtual environment.

It needs pandas below 3, albumentations and wandb, which conflict with this project's environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from microdit.common.errors import DataError
from microdit.common.files.atomic import write_text
from microdit.common.files.text import read_json_object
from microdit.common.process.identity import identity_of, is_alive, pid_of
from microdit.common.process.isolated_venv import Tool
from microdit.data.cifar_captions.config import Fetch

TOOL = Tool(
    "img2dataset",
    "img2dataset",
    "img2dataset>=1.45,<2",
    "--img2dataset",
    ", or stop at the selection with --select-only",
)
LOG, PROCESS = "img2dataset.log", "process.json"
POLL_SECONDS, REPORT_SECONDS, GRACE_SECONDS = 0.2, 15.0, 5.0


def run(python: Path, urls: Path, folder: Path, fetch: Fetch) -> None:
    """Download the shards that are missing or incomplete.

    Args:
        python: a Python that has img2dataset.
        urls: parquet file with a column `url`.
        folder: folder of the shards and the log.
        fetch: how images are downloaded and resized.

    Raises:
        DataError: if img2dataset fails.
    """
    shards, log, record = folder / "shards", folder / LOG, folder / PROCESS
    shards.mkdir(parents=True, exist_ok=True)
    _end_left_over(record)
    # Lists of urls that a killed process left; img2dataset would read them too.
    shutil.rmtree(shards / "_tmp", ignore_errors=True)
    line = [str(python), "-m", "img2dataset.main", *_options(urls, shards, fetch)]
    with log.open("ab") as stream:
        # In its own session, so that an interruption can end its worker processes too.
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            write_text(record, identity_of(process.pid))
            _watch(process, shards)
        finally:
            _end(process.pid)
            process.wait()
            record.unlink(missing_ok=True)
    if process.returncode != 0:
        raise DataError(f"img2dataset ended with code {process.returncode}: {_last_line(log)} (all of it: {log})")


def _options(urls: Path, shards: Path, fetch: Fetch) -> list[str]:
    options = {
        "url_list": urls,
        "input_format": "parquet",
        "url_col": "url",
        "output_folder": shards,
        "output_format": "files",
        "resize_mode": "center_crop",
        "image_size": fetch.image_size,
        "min_image_size": fetch.min_size,
        "timeout": fetch.timeout,
        "retries": fetch.retries,
        "processes_count": fetch.processes,
        "thread_count": fetch.threads,
        "number_sample_per_shard": fetch.shard_size,
        "incremental_mode": "incremental",
        "extract_exif": False,
        "enable_wandb": False,
    }
    return [f"--{name}={value}" for name, value in options.items()]


def _watch(process: subprocess.Popen[bytes], shards: Path) -> None:
    reported = time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            stats = [read_json_object(path) for path in shards.glob("*_stats.json")]  # of complete shards
            tried, got = (sum(int(one.get(key, 0)) for one in stats) for key in ("count", "successes"))
            print(f"{tried:,} urls tried, {got:,} images", file=sys.stderr)


def _end_left_over(record: Path) -> None:
    """End the img2dataset process of an earlier call that was killed; it would write the same files."""
    if not record.is_file():
        return
    identity = record.read_text(encoding="utf-8").strip()
    if is_alive(identity):
        _end(pid_of(identity))
    record.unlink()


def _end(pid: int) -> None:
    """End a process and its children, if they still run."""
    try:
        first = psutil.Process(pid)
        family = [first, *first.children(recursive=True)]
    except psutil.Error:
        return
    for process in family:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(family, GRACE_SECONDS)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, GRACE_SECONDS)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
    return lines[-1] or "it printed nothing"
