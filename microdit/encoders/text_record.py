"""Record the text features of a training run, and compare them in later runs.

With other features of the same size, sampling would give wrong images without an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microdit.common.errors import ConfigError
from microdit.common.files.tensors import read_facts
from microdit.encoders import open_clip_checkpoint
from microdit.encoders.config import TextConfig
from microdit.encoders.hub import is_name, known_name
from microdit.encoders.sizes import CLIP_HUB, TEXT_KEY, TRANSFORMERS_HUB
from microdit.encoders.text import build_text_encoder

log = logging.getLogger(__name__)

RELEASED = TextConfig("hf-hub:apple/DFN5B-CLIP-ViT-H-14-378", "last")  # text encoder of the released models
BUNDLED = ("builtin", "minilm")  # encoders in packages, whose versions may differ
BY_NAME = "open_clip/"  # prefix of fingerprints that are names, not digests of files
ARCHITECTURE = ("context_length", "vocab_size", "width", "heads", "layers")  # settings of a text tower


@dataclass(frozen=True)
class TextRecord:
    """Identify an encoder and the layer whose output is used."""

    name: str  # as published; "" for a local folder
    layer: str
    fingerprint: str  # of the encoder's files, the layer and the length; "" if unknown

    def facts(self) -> dict[str, str]:
        """Return the metadata written with weights."""
        return {"text.name": self.name, "text.layer": self.layer, "text.fingerprint": self.fingerprint}

    def __str__(self) -> str:
        return f"'{self.name}'" if self.name else f"a local folder (fingerprint {self.fingerprint[:12]})"


def text_record(config: TextConfig, fingerprint: str) -> TextRecord:
    """Return the record of a configured encoder.

    Args:
        config: names the encoder.
        fingerprint: of the encoder; "" if its files are unknown.
    """
    return TextRecord(config.encoder or published_name(config.path), config.layer, fingerprint)


def recorded_text(weights: Path) -> TextRecord | None:
    """Return the record stored with weights, None if they have none.

    Raises:
        CheckpointError: if the file is damaged.
    """
    facts = read_facts(weights)
    if "text.layer" not in facts:
        return None
    return TextRecord(facts.get("text.name", ""), facts["text.layer"], facts.get("text.fingerprint", ""))


def published_name(path: str) -> str:
    """Return one name per published encoder, "" for a local folder.

    open_clip's MODEL/TAG becomes the name of its hub repository.

    Raises:
        ConfigError: if open_clip has no such model or weights.
    """
    if path in BUNDLED or path.startswith((CLIP_HUB, TRANSFORMERS_HUB)):
        return path.rstrip("/")
    if not is_name(path):
        return ""
    _, pretrained = known_name(path, TEXT_KEY)
    hub = str(pretrained.get("hf_hub") or "")
    return f"{CLIP_HUB}{hub.rstrip('/')}" if hub.endswith("/") else path  # else a repository of several models


def check_features(weights: Path, config: TextConfig) -> None:
    """Compare the configured text features with those recorded in weights, if any.

    A warning is logged if they can't be compared.

    Args:
        weights: a .safetensors file.
        config: names the encoder.

    Raises:
        ConfigError: if they differ; the message has the setting, both values and the remedy.
        CheckpointError: if the file is damaged.
    """
    record = recorded_text(weights)
    if record is None:
        return
    where = f"{weights} was trained on features of the text encoder {record}, layer '{record.layer}'"
    if config.layer != record.layer:
        raise ConfigError(f"'text.layer' is {config.layer}, but {where}; set text.layer={record.layer}")
    name = config.encoder or published_name(config.path)
    if name and name == record.name and name not in BUNDLED:
        return
    fingerprint = build_text_encoder(config).fingerprint if record.fingerprint else ""
    if fingerprint and fingerprint == record.fingerprint:
        return
    by_content = all(one and not one.startswith(BY_NAME) for one in (fingerprint, record.fingerprint))
    if by_content or (name and record.name):
        remedy = f"set text.path={record.name}" if record.name else "set text.path to that folder"
        raise ConfigError(f"'{TEXT_KEY}' is '{config.path}', another text encoder: {where}; {remedy}")
    _check_architecture(record.name or name, Path(config.path).expanduser(), where)
    log.warning(f"'{TEXT_KEY}' is '{config.path}', whose weights can't be compared: {where}")


def _check_architecture(name: str, folder: Path, where: str) -> None:
    """Check that a local folder's text tower can be the published one.

    Only what open_clip describes is compared.

    Raises:
        ConfigError: if it can't.
    """
    published = _settings_of(name.removeprefix(CLIP_HUB))
    if published is None or not (folder / open_clip_checkpoint.CONFIG).is_file():
        return
    own = open_clip_checkpoint.read_settings(folder, TEXT_KEY)["model_cfg"]
    expected, found = _architecture(published), _architecture(own)
    wrong = [f"{key} {found[key]} instead of {value}" for key, value in expected.items() if found[key] != value]
    if wrong:
        raise ConfigError(f"'{TEXT_KEY}' is '{folder}', another text encoder ({', '.join(wrong)}): {where}")


def _architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    text = settings["text_cfg"]
    return {key: text.get(key) for key in ARCHITECTURE} | {"quick_gelu": bool(settings.get("quick_gelu", False))}


def _settings_of(repository: str) -> Mapping[str, Any] | None:
    """Return open_clip's settings of a published model, by its hub repository."""
    import open_clip

    for model, tag in open_clip.list_pretrained():
        pretrained = open_clip.get_pretrained_cfg(model, tag)
        settings = open_clip.get_model_config(model)
        if str(pretrained.get("hf_hub") or "").rstrip("/") != repository or settings is None:
            continue
        if bool(pretrained.get("quick_gelu", False)) == bool(settings.get("quick_gelu", False)):
            return dict(settings)
    return None
