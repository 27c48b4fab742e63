"""List every reader of foreign files, each with a valid seed and the call that reads it.

A reader gets a folder that holds the seed's other files, and the mutated file in its place. It may raise only the
project's own errors.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save

from analysis.errors import ReportError
from analysis.io.results import tiles
from analysis.io.study import study_of
from microdit.common.files.tensors import read_facts, read_tensors
from microdit.common.files.text import read_json, read_text
from microdit.common.files.yaml_text import load_stored_mapping
from microdit.common.parsing import flatten, read_yaml, to_mapping
from microdit.common.stores.claims import parse_claim
from microdit.config.schema import load_config
from microdit.data.cifar_captions.class_words import load_words
from microdit.data.cifar_captions.data_card import Card
from microdit.data.image_folder.dataset import split_folder
from microdit.data.images.reader import load_square
from microdit.data.latents.caption_store import CaptionStore
from microdit.data.latents.reader import open_images, read_index
from microdit.data.latents.shards import open_shard
from microdit.data.sources.registry import is_mds
from microdit.encoders.autoencoder import build_autoencoder
from microdit.encoders.config import AutoencoderConfig
from microdit.evaluation.image_folder import evaluate_folder
from microdit.evaluation.prompt_files import read_prompts
from microdit.model.checkpoint_import import _read_config
from microdit.training.checkpoint import read_checkpoint, stored_optimizer
from microdit.training.stored_tensors import TensorFiles, sharded_parts
from sweeps.config.hydra_compose import compose_config
from sweeps.config.study import load_study
from sweeps.planning.trials import plan_trials


@dataclass(frozen=True)
class Reader:
    """Describe one reader: the mutated file's name, its valid content and its kind, and the call."""

    name: str
    file: str
    seed: bytes
    read: Callable[[Path], Any]
    kind: str = "bytes"  # bytes | json | jsonl | yaml: whose parsed structure is mutated too
    beside: Mapping[str, bytes] = field(default_factory=dict)
    slow: bool = False  # more than a few milliseconds per case


def _png(mode: str = "RGB", side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (side, side), "red" if mode != "I;16" else 40_000).save(stream, "PNG")
    return stream.getvalue()


def _image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((24, 20), 60).convert("RGB").save(stream, kind)
    return stream.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@cache
def _tensors() -> bytes:
    return save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)}, {"facts": "{}"})


def _shard() -> bytes:
    tensors = {
        "latents": torch.zeros(3, 2, 4, 4, dtype=torch.float16),
        "labels": torch.tensor([0, 1, 1]),
        "held_out": torch.tensor([False, True, False]),
        "digests": torch.arange(3),
        "features": torch.zeros(3, 4, 5, dtype=torch.float16),
    }
    return save(tensors, {"facts": json.dumps({"errors": [], "statistics": {}})})


INDEX = {
    "format": "microdit-latents-1",
    "resolution": 16,
    "classes": ["a", "b"],
    "latents": {"shape": [2, 4, 4]},
    "autoencoder": {"class": "pixels"},
    "statistics": {"train": {"values": 4, "sum": 1.0, "squares": 2.0}},
    "fingerprint": "abc",
    "shards": [{"file": "0-a.safetensors", "count": 3, "bytes": 10, "sha256": "x"}],
}
STUDY = {
    "question": "Which rate?",
    "axes": {"optimizer.lr": [1e-4, 1e-3]},
    "arms": {"a": {}, "b": {"training.clip": 0.5}},
    "baseline": "a_lr=0.0001",
    "seeds": [0, 1],
    "metrics": {"primary": "clip_fd", "direction": "minimize"},
    "scales": {"smoke": {"seeds": [0]}},
}
SEARCH = {
    "question": "Which rate?",
    "search": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "model.qk_norm": [True, False]},
    "sampler": {"type": "tpe", "n_startup_trials": 2},
    "pruner": {"type": "median"},
    "n_trials": 3,
    "seeds": [0],
}
ROWS = [{"file_name": f"{i}.png", "text": "a red square", "label": i, "split": "train"} for i in range(2)]
STATE = {"format": 2, "step": 5, "seconds": 1.5, "averaged": 0, "interval": {"sums": {}, "steps": 0}, "files": {}}
SHARDS = {"processes": 2, "parts": {"ema": {"a": {"shape": [4, 3], "split": True}}}}
VAE = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8], "scaling_factor": 0.2}


def _config() -> bytes:
    return yaml.safe_dump(to_mapping(compose_config(["scale=smoke"])), sort_keys=False).encode()


def _study(path: Path) -> Any:
    return plan_trials(load_study(str(path / "s.yaml"), "smoke"), [])


def _report(path: Path) -> Any:
    tags = {"microdit.study": "s", "microdit.scale": "demo"}
    parent = SimpleNamespace(data=SimpleNamespace(tags=tags), info=SimpleNamespace(run_id="r"))
    try:
        return study_of(load_stored_mapping(read_text(path / "study.yaml"), "study.yaml", ReportError), parent)
    except (TypeError, ValueError, AttributeError, OverflowError):  # `read_study` turns these into its own error
        return None


def _listing(path: Path) -> Any:
    values = read_json(path / "prompts.json", ReportError)
    try:
        return tiles(np.zeros((16, 64, 3), np.uint8), values)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):  # a report omits the images
        return None


def _reference() -> Any:
    return SimpleNamespace(classes=("a", "b"), resolution=16, fingerprint="x", __len__=lambda: 0)


def readers() -> list[Reader]:
    """Return the table; made in a call, because some seeds are composed by Hydra."""
    config = _config()
    two = {"0.png": _png(), "1.png": _png("RGBA")}
    csv = b'file_name,text,label\n0.png,a red square,1\n1.png,"two\nlines",0\n'
    coco = {"annotations": [{"image_id": 1, "caption": "a cat"}, {"image_id": 2, "caption": "a dog"}]}
    header = {"format": "microdit-captions-1", "fingerprint": "x", "length": 4, "width": 5}
    card = {name: {} for name in Card.__dataclass_fields__}
    from analysis.claims import selection as claims_module

    claims = (Path(claims_module.__file__).parent / "claims.yaml").read_bytes()
    claim = yaml.safe_dump(next(iter(yaml.safe_load(claims).values()))[0]).encode()
    words = yaml.safe_dump({"cat": {"words": ["cat", "kitten"], "not": ["cat food"]}}).encode()
    evaluated = lambda path: evaluate_folder(path, _reference(), compose_config([]).evaluation, path)  # noqa: E731
    table = [
        Reader("config.yaml", "c.yaml", config, lambda p: load_config(p / "c.yaml"), "yaml", slow=True),
        Reader("a study's YAML", "s.yaml", yaml.safe_dump(STUDY).encode(), _study, "yaml", slow=True),
        Reader("a search's YAML", "s.yaml", yaml.safe_dump(SEARCH).encode(), _study, "yaml", slow=True),
        Reader("prompts, one per line", "p.txt", b"a cat\na dog\n", lambda p: read_prompts(p / "p.txt", 1)),
        Reader("COCO captions", "p.json", _json(coco), lambda p: read_prompts(p / "p.json", 1), "json"),
        Reader("metadata.jsonl", "metadata.jsonl", b"\n".join(map(_json, ROWS)),
               lambda p: split_folder(p, 0, 0.5), "jsonl", two),
        Reader("metadata.csv", "metadata.csv", csv, lambda p: split_folder(p, 0, 0.5), beside=two),
        Reader("a caption beside its image", "0.txt", b"a red square\n", lambda p: split_folder(p, 0, 0.5),
               beside={"0.png": _png()}),
        Reader("prompts.json of a folder", "prompts.json", _json({"prompts": ["a", "b"], "labels": [0, "b"]}),
               evaluated, "json", {"0.png": _png(), "1.png": b"no image"}),
        Reader("the word list", "w.yaml", words, lambda p: load_words(p / "w.yaml"), "yaml"),
        Reader("card.json", "card.json", _json(card), lambda p: Card.load(p / "card.json"), "json"),
        Reader("an index of latents", "index.json", _json(INDEX), read_index, "json"),
        Reader("a shard of latents", "s.safetensors", _shard(), lambda p: open_shard(p / "s.safetensors")),
        Reader("latents by their index", "index.json", _json(INDEX), open_images, "json",
               {"0-a.safetensors": _shard()}),
        Reader("a store of captions", "header.json", _json(header), CaptionStore, "json",
               {"c-x.safetensors": _shard()}),
        Reader("an MDS index", "index.json", _json({"shards": [{"format": "mds"}]}), lambda p: is_mds(str(p)), "json"),
        Reader("safetensors", "t.safetensors", _tensors(), lambda p: read_tensors(p / "t.safetensors")),
        Reader("facts of safetensors", "t.safetensors", _tensors(), lambda p: read_facts(p / "t.safetensors")),
        Reader("a checkpoint's state", "state.json", _json(STATE), read_checkpoint, "json"),
        Reader("an optimizer's state", "optimizer.json", _json({"a": [1, {"b": 2}]}),
               lambda p: stored_optimizer(TensorFiles(p)), "json", {"optimizer.safetensors": _tensors()}),
        Reader("an index of shards", "index.json", _json(SHARDS),
               lambda p: [t.read() for t in sharded_parts(TensorFiles(p), ("ema",))["ema"].values()], "json",
               {f"shard_0000{i}_of_00002.safetensors": save({"ema/a": torch.ones(2, 3)}) for i in range(2)}),
        Reader("a model's JSON", "m.json", _json({"width": 64, "depth": 2}),
               lambda p: _read_config(p / "m.json"), "json"),
        Reader("an autoencoder's configuration", "config.json", _json(VAE),
               lambda p: build_autoencoder(AutoencoderConfig(str(p))), "json",
               {"diffusion_pytorch_model.safetensors": b"x"}, slow=True),
        Reader("a claim", "c.yaml", claim, lambda p: parse_claim(read_yaml(p / "c.yaml"), "c.yaml"), "yaml"),
        Reader("study.yaml of a launch", "study.yaml", yaml.safe_dump(STUDY).encode(), _report, "yaml"),
        Reader("config.yaml in a report", "c.yaml", config,
               lambda p: flatten(load_stored_mapping(read_text(p / "c.yaml"), "c", ReportError)), "yaml", slow=True),
        Reader("prompts.json in a report", "prompts.json", _json({"tile": 16, "prompts": ["a"]}), _listing, "json"),
    ]  # fmt: skip
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        table.append(Reader(f"a {kind} image", "i", _image(kind), lambda p: load_square(p / "i", 16)))
    return table
