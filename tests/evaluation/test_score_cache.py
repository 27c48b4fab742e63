"""Test the cache of real images' features: same numbers, computed once, safe for several processes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pickle_trap import PickleTrap

from microdit.data.config import DataConfig
from microdit.data.dataset import CaptionedImages, Sample
from microdit.data.registry import build_dataset
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.score import score

COUNT = 48
CONFIG = EvalConfig(reference_count=64, metrics=("clip_fd",))
DATA = DataConfig(max_objects=1, train_size=128, val_size=COUNT)

SCORE_ONCE = """
import json, sys
import numpy as np
import torch
from microdit.data.config import DataConfig
from microdit.data.registry import build_dataset
from microdit.evaluation.config import EvalConfig
from microdit.evaluation.score import score
torch.set_num_threads(1)
data = DataConfig(max_objects=1, train_size=128, val_size=48)
items = [build_dataset(data, "val")[i] for i in range(48)]
found = score(
    np.stack([item.image for item in items]), [item.caption for item in items], [item.label for item in items],
    build_dataset(data, "train"), EvalConfig(reference_count=64, metrics=("clip_fd",)), sys.argv[1],
)
print(json.dumps(found))
"""


class Counting:
    """Count how often a dataset is read."""

    def __init__(self, data: CaptionedImages) -> None:
        self.data = data
        self.classes, self.resolution, self.fingerprint = data.classes, data.resolution, data.fingerprint
        self.reads = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Sample:
        self.reads += 1
        return self.data[i]


def scored(reference: CaptionedImages, cache: Path, config: EvalConfig = CONFIG) -> dict[str, float]:
    val = build_dataset(DATA, "val")
    items = [val[i] for i in range(COUNT)]
    images = np.stack([item.image for item in items])
    return score(images, [item.caption for item in items], [item.label for item in items], reference, config, cache)


def test_cached_features_give_identical_numbers_without_reading_the_reference(tmp_path: Path) -> None:
    reference = Counting(build_dataset(DATA, "train"))
    config = replace(CONFIG, metrics=("clip_fd", "clip_score", "class_accuracy"))
    first = scored(reference, tmp_path / "one", config)
    assert reference.reads >= 64 + COUNT
    reference.reads = 0
    assert scored(reference, tmp_path / "one", config) == first
    assert reference.reads == 0
    assert scored(reference, tmp_path / "two", config) == first


def stage(path: Path) -> int:
    """Return the place of a file of the cache in the order of computation."""
    return 2 if path.suffix == ".json" else 1 if "-moments" in path.stem else 0


def test_a_damaged_file_is_computed_again_and_no_pickle_is_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, trace = tmp_path / "cache", tmp_path / "executed"
    first = scored(build_dataset(DATA, "train"), cache)
    files = sorted(path for path in cache.iterdir() if path.suffix != ".lock")
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    floor = json.loads(next(path for path in files if path.suffix == ".json").read_text())
    for path in files:
        whole = path.read_bytes()
        swapped = whole.replace(b'"fd": ', b'"fd":9') if path.suffix == ".json" else whole[:-5] + b"wrong"
        assert swapped != whole
        for damaged in (swapped, whole[: len(whole) // 2], b"", pickle.dumps(PickleTrap(trace))):
            for other in files:  # each is read only if those computed from it are missing
                if stage(other) > stage(path):
                    other.unlink(missing_ok=True)
            path.write_bytes(damaged)
            caplog.clear()
            assert scored(build_dataset(DATA, "train"), cache) == first
            [line] = [record.getMessage() for record in caplog.records if "computed again" in record.getMessage()]
            assert str(path) in line
    assert json.loads(next(path for path in files if path.suffix == ".json").read_text()) == floor
    for path in cache.glob("*.safetensors"):  # the names of an older version's cache
        torch.save(PickleTrap(trace), path.with_suffix(".pt"))
    assert scored(build_dataset(DATA, "train"), cache) == first
    assert not trace.exists()


def test_other_data_or_counts_do_not_share_features(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    scored(build_dataset(DATA, "train"), shared)
    cases = [
        (build_dataset(replace(DATA, seed=1), "train"), CONFIG),
        (build_dataset(DATA, "train"), replace(CONFIG, reference_count=60)),
    ]
    for number, (reference, config) in enumerate(cases):
        assert scored(reference, shared, config) == scored(reference, tmp_path / str(number), config)


def test_two_processes_can_share_a_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCORE_ONCE, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert json.loads(outputs[0]) == json.loads(outputs[1])
    assert json.loads(outputs[0]) == scored(build_dataset(DATA, "train"), tmp_path)
