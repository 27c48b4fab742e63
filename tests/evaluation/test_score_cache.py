"""Features of real pictures are computed once: same numbers, no second reading, safe among processes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from microdit.data.base import CaptionedImages, DataConfig, Item, build_dataset
from microdit.evaluation import EvalConfig, score

COUNT = 48
CONFIG = EvalConfig(reference_count=64, metrics=("clip_fd",))
DATA = DataConfig(max_objects=1, train_size=128, val_size=COUNT)

SCORE_ONCE = """
import json, sys
import numpy as np
import torch
from microdit.data.base import DataConfig, build_dataset
from microdit.evaluation import EvalConfig, score
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
    """A dataset that counts how often it is read."""

    def __init__(self, data: CaptionedImages) -> None:
        self.data = data
        self.classes, self.resolution, self.fingerprint = data.classes, data.resolution, data.fingerprint
        self.reads = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Item:
        self.reads += 1
        return self.data[i]


def scored(reference: CaptionedImages, cache: Path, config: EvalConfig = CONFIG) -> dict[str, float]:
    val = build_dataset(DATA, "val")
    items = [val[i] for i in range(COUNT)]
    images = np.stack([item.image for item in items])
    return score(images, [item.caption for item in items], [item.label for item in items], reference, config, cache)


def test_cached_features_give_identical_numbers_without_reading_the_reference(tmp_path: Path) -> None:
    reference = Counting(build_dataset(DATA, "train"))
    first = scored(reference, tmp_path / "one")
    assert reference.reads >= 64 + COUNT
    reference.reads = 0
    assert scored(reference, tmp_path / "one") == first
    assert reference.reads == 0
    assert scored(reference, tmp_path / "two") == first


def test_other_data_or_counts_never_meet_stale_features(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    scored(build_dataset(DATA, "train"), shared)
    cases = [
        (build_dataset(replace(DATA, seed=1), "train"), CONFIG),
        (build_dataset(DATA, "train"), replace(CONFIG, reference_count=60)),
    ]
    for number, (reference, config) in enumerate(cases):
        assert scored(reference, shared, config) == scored(reference, tmp_path / str(number), config)


def test_two_processes_may_score_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCORE_ONCE, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert json.loads(answers[0]) == json.loads(answers[1])
    assert json.loads(answers[0]) == scored(build_dataset(DATA, "train"), tmp_path)
