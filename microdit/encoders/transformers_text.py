"""Encode captions with transformers' text encoders, with attention masks.

T5, CLIP text and sentence encoders are supported; the features are per token. B batch, S text tokens, Y width of the
encoder.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microdit.common.errors import ConfigError
from microdit.common.files.digests import sha256
from microdit.encoders.hub import short
from microdit.encoders.sizes import (
    TEXT_KEY,
    TRANSFORMERS_CONFIG,
    feature_width,
    token_count,
    transformers_settings,
)
from microdit.model.conditioning import MaskedTokens

CONFIG, WEIGHTS = TRANSFORMERS_CONFIG, ("*.safetensors", "pytorch_model*.bin")  # the first pattern that matches is used
CLASSES = {  # types whose encoder is a part of the model; others are opened by AutoModel
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}
UNUSED = ("pooler.",)  # weights that don't affect token features


class TransformersText:
    """Encode captions as token features of an encoder in transformers' format.

    Padding is masked, and its features are zeros. The weights are loaded at the first caption, since a run with encoded
    captions needs only the sizes.

    Args:
        folder: has the configuration, the weights and the tokenizer.
        layer: "last" or "penultimate", the block whose output is used.
        length: `text.length`; None takes the encoder's own.
        device: where the encoder runs.

    Raises:
        ConfigError: if the package transformers or a file is missing, or the configuration does not fit.
    """

    def __init__(self, folder: Path, layer: str, length: int | None, device: torch.device | str) -> None:
        width = feature_width(folder)
        if width is None:
            raise ConfigError(f"'{TEXT_KEY}': {folder / CONFIG} has no encoder width (hidden_size or d_model)")
        if importlib.util.find_spec("transformers") is None:
            raise ConfigError(f"'{TEXT_KEY}': {folder} needs the package transformers: pip install 'microdit[text]'")
        self._folder, self.layer, self._device = folder, layer, torch.device(device)
        self.width, self.length = width, token_count(folder, length)
        small = [path for pattern in ("*.json", "*.txt", "*.model") for path in sorted(folder.glob(pattern))]
        self.fingerprint = f"{sha256(*small, *_weights(folder))}-{layer}-{self.length}"

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> MaskedTokens:
        """Encode captions.

        Args:
            captions: B texts; longer ones are cut at S tokens.

        Returns:
            Features (B, S, Y) float32 and their mask (B, S).

        Raises:
            ConfigError: if the weights or the tokenizer can't be loaded.
        """
        if not captions:
            return MaskedTokens(torch.zeros(0, self.length, self.width), torch.zeros(0, self.length, dtype=torch.bool))
        ids, mask = self._tokenize(list(captions))
        hidden: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        kept = mask.bool()
        return MaskedTokens(hidden.masked_fill(~kept.unsqueeze(-1), 0), kept)

    def _tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return ids (B, S) int64 of B captions, and 1 for tokens that are not padding (B, S)."""
        found = self._tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return found["input_ids"].to(self._device), found["attention_mask"].to(self._device)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        with _quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
                tokenizer.padding_side = "right"
                tokenizer([""], padding="max_length", max_length=self.length)  # fails if it can't pad
            except Exception as error:  # loaders raise almost any type for a damaged file
                raise ConfigError(
                    f"'{TEXT_KEY}': {self._folder}: its tokenizer can't be used: {short(error)}"
                ) from None
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        import transformers

        pickles = [path.name for path in _weights(self._folder) if path.suffix != ".safetensors"]
        if pickles:
            raise ConfigError(
                f"'{TEXT_KEY}': {self._folder}: transformers can't load it: {pickles[0]} is a pickle, which could run "
                "any code; save the model again as safetensors (save_pretrained does) in an environment that you trust"
            )
        kind = CLASSES.get(transformers_settings(self._folder)["model_type"], "AutoModel")
        with _quiet():
            try:
                model, report = getattr(transformers, kind).from_pretrained(
                    self._folder,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
            except Exception as error:  # loaders raise almost any type for a damaged file
                raise ConfigError(f"'{TEXT_KEY}': {self._folder}: transformers can't load it: {short(error)}") from None
        missing = sorted(name for name in report["missing_keys"] if not name.startswith(UNUSED))
        if missing:  # transformers would replace them by random numbers
            raise ConfigError(
                f"'{TEXT_KEY}': {self._folder}: its weights lack {len(missing)} tensors, such as {missing[0]}"
            )
        if self.layer == "penultimate":
            _drop_last_block(model, self._folder)
        return model.to(self._device).eval().requires_grad_(False)


def _drop_last_block(model: nn.Module, folder: Path) -> None:
    """Remove the last block.

    The penultimate block's output then passes the final norm, if there is one.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    stacks = [
        part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == config.num_hidden_layers
    ]
    if len(stacks) != 1 or len(stacks[0]) < 2:
        raise ConfigError(f"'text.layer' is penultimate, but {folder} has no stack of blocks; use last")
    del stacks[0][-1]


def _weights(folder: Path) -> list[Path]:
    for pattern in WEIGHTS:
        if found := sorted(folder.glob(pattern)):
            return found
    raise ConfigError(f"'{TEXT_KEY}': {folder} has neither model.safetensors nor pytorch_model.bin")


@contextmanager
def _quiet() -> Iterator[None]:
    """Turn off progress bars and reports of intentionally unused weights.

    An example is a T5's decoder.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
